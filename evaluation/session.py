"""One evaluation: opened at once, asked question by question, written as a whole at the end.

The numbers go into a folder that is named after what decides them, so that other settings never
overwrite them and an interrupted evaluation leaves none. Pictures and features are kept beside it,
so the same command resumes.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import Tensor

from config import EvaluationConfig
from custom_datasets.captions import Caption
from evaluation import sets, table
from evaluation.captions import CAPTIONS, write_captions
from evaluation.estimate import MIN_CLUSTERS, NotMeasured
from evaluation.features import cached_features, extract, stored_at
from evaluation.judge import Reading, reliable_attributes
from evaluation.networks import FeatureNetwork, Networks
from evaluation.sets import FaceImages, FileImages, ImageSet, Together
from evaluation.table import CONTROL, GENERATED, REAL, RECONSTRUCTED, Table
from files import let_others_read, write_json
from inference.picture_sets import Request, generate_set
from inference.text_to_face import TextToFace

METRICS, PROTOCOL, PICTURES = "metrics.json", "protocol.json", "pictures.safetensors"


class Features(NamedTuple):
    """Features of a set, and the face that each image shows or was asked to show."""

    values: Tensor  # float32 (N, D)
    faces: np.ndarray  # int (N,)


@dataclass
class Evaluation:
    """Pictures, real faces and networks; the numbers so far.

    Under `accelerate launch` all processes make pictures and extract features; the main one
    computes the numbers and writes them.
    """

    plan: EvaluationConfig
    folder: Path  # of the run: pictures and features, and a folder for each evaluation
    device: torch.device
    workers: int
    name: str  # of this evaluation's folder, after what decides its numbers
    train: FaceImages
    heldout: FaceImages  # the validation split
    test: FaceImages
    networks: Networks
    protocol: dict[str, Any]
    pictures: FileImages
    captions: list[Caption]  # one a picture; empty where they are not known
    described: np.ndarray | None  # (N,) the test face that each caption describes
    model: TextToFace | None = None  # None: the pictures were made elsewhere
    request: Request | None = None
    table: Table = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)  # question -> reason
    matches: Any = None  # of `copies`, for its figure
    notes: dict[str, Tensor] = field(default_factory=dict)  # numbers of each picture, (N,)
    _reconstructed: dict[str, ImageSet] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this process computes and writes the numbers."""
        return PartialState().is_main_process

    @property
    def clusters(self) -> np.ndarray:
        """The independent unit of each picture, (N,): what it was asked for.

        Where a few prompts were asked again and again each picture is its own: the intervals then
        hold for these prompts.
        """
        asked = self.asked
        is_few = len(np.unique(asked)) < MIN_CLUSTERS
        return np.arange(len(asked)) if is_few else asked

    @property
    def asked(self) -> np.ndarray:
        """What pictures have in common, (N,): the face that they were asked to show, else the
        caption; without captions each is its own.
        """
        if self.described is not None or not self.captions:
            return np.arange(len(self.pictures)) if self.described is None else self.described
        return np.unique([caption.text for caption in self.captions], return_inverse=True)[1]

    @cached_property
    def reference(self) -> ImageSet:
        """The real faces that distances are measured to."""
        everything = Together((self.train, self.heldout, self.test))
        return {"test": self.test, "train": self.train, "all": everything}[self.plan.reference]

    @cached_property
    def untrained(self) -> ImageSet | None:
        """Pictures of the same model with random weights; None without a model."""
        if self.model is None or self.request is None:
            return None
        control = sets.control_request(self.request)
        return generate_set(sets.untrained(self.model), control, self.folder / "generated")

    def reconstructed(self, images: ImageSet) -> ImageSet | None:
        """Real faces through the model's autoencoder; None without a model."""
        key = str(images.key)
        if self.model is not None and key not in self._reconstructed:
            folder = self.folder / "reconstructed"
            made = sets.through_autoencoder(self.model, images, folder, self.workers)
            self._reconstructed[key] = made
        return self._reconstructed.get(key)

    @cached_property
    def reliable(self) -> tuple[str, ...]:
        """The attributes that the classifier reads well on validation faces."""
        readings = [Reading(**each) for each in self.networks.judge_facts.get("validation", ())]
        return reliable_attributes(readings, self.plan.min_balanced_accuracy)

    def require_captions(self) -> list[Caption]:
        """The captions of the pictures.

        Raises:
            NotMeasured: they are not known.
        """
        if not self.captions:
            raise NotMeasured("the captions of the pictures are not known: give --captions")
        return self.captions

    def require_reference(self) -> ImageSet:
        """The real faces that distances are measured to.

        Raises:
            NotMeasured: they are too few.
        """
        if len(self.reference) < MIN_CLUSTERS:
            raise NotMeasured(
                f"{len(self.reference)} real faces are too few to compare with: {MIN_CLUSTERS} in "
                "the test split, or evaluation.reference=train"
            )
        return self.reference

    def features(self, network: FeatureNetwork, images: ImageSet) -> Features:
        """Features of a set, extracted once, by all processes together."""
        folder = self.folder / "features"
        values = cached_features(network, images, folder, self.device, self.workers)
        is_own = images is self.pictures
        return Features(values, self.clusters if is_own else np.arange(len(values)))

    def extract(self, network: FeatureNetwork, images: ImageSet) -> Tensor:
        """The same, of what is cheap to extract again."""
        return extract(network, images, self.device, self.workers)

    def compared(self, network: FeatureNetwork) -> dict[str, Features]:
        """Features of the sets that are compared, of one n but for the control."""
        images = {GENERATED: self.pictures}
        if self.plan.reference != "all" and len(self.heldout) >= MIN_CLUSTERS:
            images[REAL] = self.heldout
            if (decoded := self.reconstructed(self.heldout)) is not None:
                images[RECONSTRUCTED] = decoded
        found = {name: self.features(network, each) for name, each in images.items()}
        n = min(len(each.values) for each in found.values())
        found = {name: Features(each.values[:n], each.faces[:n]) for name, each in found.items()}
        if (control := self.untrained) is not None and len(control) >= MIN_CLUSTERS:
            found[CONTROL] = self.features(network, control)
        return found

    def decided(self, images: ImageSet) -> np.ndarray:
        """What the attribute classifier sees in each image: bool (N, 40).

        Raises:
            NotMeasured: there is no classifier.
        """
        judge = self.networks.judge
        if judge is None:
            raise NotMeasured("there is no attribute classifier: run the notebook train2")
        answers = FeatureNetwork("attributes", lambda some: judge(some).sigmoid())
        return (self.features(answers, images).values > judge.thresholds.cpu()).numpy()

    def note(self, name: str, values: Tensor | np.ndarray) -> None:
        """Keep a number of each picture, (N,), for a comparison with another evaluation."""
        self.notes[name] = torch.as_tensor(values).contiguous()

    def ask(self, question: Callable[["Evaluation"], Table]) -> Table:
        """The table of a question; empty, with the reason noted, where it cannot be answered."""
        try:
            found = question(self)
        except NotMeasured as error:
            name = question.__module__.rpartition(".")[2]
            self.not_measured[name] = str(error)
            if self.is_main:
                print(f"not measured: {name}: {error}")
            return []
        answered = {each.question for each in found}  # perhaps before, by the same cell
        self.table = [each for each in self.table if each.question not in answered] + found
        return found

    def save(self, figures: Mapping[str, Figure] | None = None) -> Path:
        """Write everything at once and return its folder; what was there is replaced as a whole.

        Args:
            figures: by the names of their files.
        """
        folder = self.folder / "evaluations" / self.name
        if not self.is_main:
            return folder
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        table.write(unfinished / METRICS, self.table)
        write_json(unfinished / PROTOCOL, self._facts())
        paths, parent = (path.resolve() for path in self.pictures.paths), self._parent
        names = [path.relative_to(parent).as_posix() for path in paths]
        write_captions(unfinished / CAPTIONS, names, [each.text for each in self.captions])
        notes = self.notes | {"face": torch.from_numpy(self.clusters)}
        save_file(notes, unfinished / PICTURES)
        let_others_read(unfinished / PICTURES)
        for name, figure in (figures or {}).items():
            figure.savefig(unfinished / f"{name}.png", dpi=110)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        return folder

    @property
    def _parent(self) -> str:
        """The folder that holds all pictures."""
        return os.path.commonpath([path.resolve().parent for path in self.pictures.paths])

    def _facts(self) -> dict[str, Any]:
        """The protocol, what could not be measured, and where features are kept."""
        kept = self.folder / "features"
        features = {
            space: [stored_at(network, each, kept).name for each in (self.pictures, self.reference)]
            for space, network in self.networks.spaces.items()
        }
        missing = self.networks.missing | self.not_measured
        pictures = Path(os.path.relpath(self._parent, self.folder)).as_posix()
        found = {"pictures": pictures, "not_measured": missing, "features": features}
        return self.protocol | found
