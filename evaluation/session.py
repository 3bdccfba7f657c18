"""Opens an evaluation: checks and counts everything before the first picture is made.

What cannot be measured (a missing network, too few images) is noted with its reason at
once; the rest is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from config import Config
from custom_datasets.opening import open_faces
from custom_datasets.splits import SPLIT_KINDS, SPLITS
from evaluation import sets
from evaluation.feature_cache import cached_features, stored_at
from evaluation.features import FeatureNetwork
from evaluation.foreseen import foresee
from evaluation.networks import Networks, open_networks
from evaluation.protocol import protocol_of
from evaluation.results import Results, read_results
from evaluation.samples import relative, write_captions, write_numbers
from evaluation.sets import FaceImages, FileImages, ImageSet
from evaluation.subject import Subject, own_pictures, pictures_of_a_folder
from inference.picture_sets import generate_set
from training.environment import describe_environment
from training.processes import main_process_first


@dataclass
class Evaluation:
    """Pictures, real faces, networks, and the numbers so far.

    Under `accelerate launch` all processes make pictures and extract features; numbers are computed
    and written by the main one.
    """

    config: Config
    device: torch.device
    folder: Path  # of the numbers and figures
    faces: dict[str, FaceImages]  # "train", "val", "test" and "all", each in a random order
    subject: Subject
    networks: Networks
    results: Results
    _samples: dict[str, Tensor] = field(default_factory=dict)
    _reconstructed: dict[str, ImageSet] = field(default_factory=dict)

    @cached_property
    def pictures(self) -> FileImages:
        """The pictures that are judged, made where they are missing."""
        pictures = self.subject.open()
        if self.is_main:
            captions = [caption.text for caption in self.subject.captions]
            write_captions(self.folder, pictures.paths, captions)
            write_numbers(self.folder, self._samples)  # none yet, in place of an earlier set's
        return pictures

    @property
    def is_main(self) -> bool:
        """Whether this process computes and writes the numbers."""
        return self.results.is_main

    @cached_property
    def untrained(self) -> ImageSet | None:
        """Pictures of the same model with random weights; None without a model."""
        model, request = self.subject.model, self.subject.request
        if model is None or request is None:
            return None
        control = sets.control_request(request)
        return generate_set(sets.untrained(model), control, self._kept / "generated")

    def reconstructed(self, images: FaceImages) -> ImageSet | None:
        """Real faces through the model's autoencoder; None without a model."""
        key, model = str(images.key), self.subject.model
        if model is not None and key not in self._reconstructed:
            folder, workers = self._kept / "reconstructed", self.config.data.loader_workers
            made = sets.through_autoencoder(model, images, folder, workers)
            self._reconstructed[key] = made
        return self._reconstructed.get(key)

    @cached_property
    def reliable(self) -> tuple[str, ...]:
        """The attributes that the judge may judge by."""
        return self.networks.reliable(self.config.classifier.least_balanced_accuracy)

    def features(self, network: FeatureNetwork, images: ImageSet) -> Tensor:
        """Features of a set, float32 (N, D), extracted once, by all processes together."""
        folder, workers = self._kept / "features", self.config.data.loader_workers
        return cached_features(network, images, folder, self.device, workers)

    def note_features(self, space: str, network: FeatureNetwork, reference: ImageSet) -> None:
        """Note where the features of the pictures and of their reference are kept."""
        files = {
            name: relative(stored_at(network, images, self._kept / "features"), self.folder)
            for name, images in {"generated": self.pictures, "reference": reference}.items()
        }
        self.results.add("features", space, files)

    def note_samples(self, numbers: Mapping[str, Tensor]) -> None:
        """Keep numbers of each single picture, (N,), for a comparison with another set."""
        self._samples |= numbers
        if self.is_main:
            write_numbers(self.folder, self._samples)

    def decided(self, images: ImageSet) -> np.ndarray:
        """What the judge sees in each image: bool (N, 40)."""
        thresholds = self.networks.judge.thresholds.cpu()
        return (self.features(self.networks.answers(), images) > thresholds).numpy()

    @property
    def _kept(self) -> Path:
        """Where pictures and features are kept that several evaluations of a preset share."""
        return self.config.output_folder


def open_evaluation(
    config: Config,
    device: torch.device,
    pictures: Path | None = None,
    captions: Path | None = None,
    out: Path | None = None,
) -> Evaluation:
    """Open everything, count it, and note what cannot be measured.

    Args:
        pictures: a folder of pictures made elsewhere, to be judged in place of the run's own.
        captions: what they were asked for; see `folder.read_captions`.
        out: folder of the numbers; None: the preset's, or one in it that is named after `pictures`.

    Raises:
        FileNotFoundError, ValueError: no faces, no checkpoint, no pictures; says what to do.
    """
    if captions and not pictures:
        raise ValueError(f"--captions {captions} are those of --pictures: name its folder as well")
    faces, folder = _open_splits(config), config.output_folder
    if pictures is None:
        subject = own_pictures(config, faces["test"], folder / "generated", device)
    else:
        subject = pictures_of_a_folder(config, faces["test"], pictures, captions)
        folder = folder / "judged" / pictures.resolve().name
    folder = out or folder
    precision = subject.model.precision if subject.model else "no"
    environment = describe_environment(device, precision)
    split = SPLIT_KINDS[faces["test"].faces.split_kind]
    protocol = protocol_of(config, subject.made, faces, split, environment)
    results = Results(folder / "metrics.json", protocol, PartialState().is_main_process)
    _report_damaged(results)
    networks = open_networks(config, results, device)
    foresee(results, config, faces, subject, networks)
    return Evaluation(config, device, folder, faces, subject, networks, results)


def _open_splits(config: Config) -> dict[str, FaceImages]:
    with main_process_first(PartialState(), "opening the faces"):
        faces = open_faces(config, None, config.picture_size)
    opened = {split: sets.in_random_order(faces, split) for split in SPLITS}
    if not len(opened["test"]):
        raise ValueError(f"{faces.source} holds no face of the test split to compare with")
    return opened | {"all": sets.in_random_order(faces)}


def _report_damaged(results: Results) -> None:
    if results.is_main and results.path.is_file():
        try:
            read_results(results.path)
        except ValueError:
            print(f"{results.path} is damaged and is written again")
