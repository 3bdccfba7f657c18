"""One evaluation: opened at once, asked question by question, written as a whole at the end.

The numbers go into a folder that is named after what decides them, so that other settings never
overwrite them and an interrupted evaluation leaves none. Pictures and features are kept beside it,
so the same command resumes.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from config import EvaluationConfig
from custom_datasets.captions import Caption
from evaluation import sets
from evaluation.estimate import MIN_CLUSTERS, NotMeasured
from evaluation.features import cached_features, stored_at
from evaluation.judge import reliable_attributes
from evaluation.networks import JUDGE, FeatureNetwork, Networks
from evaluation.sets import FaceImages, ImageSet
from evaluation.table import ALL, CONTROL, GENERATED, REAL, RECONSTRUCTED, Table
from files import write_json
from inference.picture_sets import Request
from inference.text_to_face import TextToFace

METRICS, PROTOCOL, PICTURES = "metrics.json", "protocol.json", "pictures.csv"
COMPARED = 5_000  # images of a set at most, as all pairs are compared; 50,000 would take 60 GB


class Features(NamedTuple):
    """Features of a set, and the face that each image shows or was asked to show."""

    values: Tensor  # float32 (N, D)
    faces: np.ndarray  # int (N,)


@dataclass
class Evaluation:
    """Pictures, real faces and networks; the numbers so far.

    Under `accelerate launch` the processes share pictures and features; each computes all numbers.
    """

    plan: EvaluationConfig
    folder: Path  # of the run: pictures and features, and a folder for each evaluation
    device: torch.device
    workers: int
    name: str  # of this evaluation's folder, after what decides its numbers
    train: FaceImages
    validation: FaceImages
    test: FaceImages
    networks: Networks
    protocol: dict[str, Any]
    pictures: ImageSet
    names: list[str]  # of their files
    captions: list[Caption]  # one a picture; empty where they are not known
    described: np.ndarray | None  # (N,) the test face that each caption describes
    model: TextToFace | None = None  # None: the pictures were made elsewhere
    request: Request | None = None
    table: Table = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)  # question -> reason
    matches: Any = None  # of `copies`, for its figure
    notes: dict[str, Tensor | np.ndarray] = field(default_factory=dict)  # of each picture, (N,)

    @cached_property
    def asked(self) -> np.ndarray:
        """What pictures have in common, (N,): the face that they were asked to show, else the
        caption; without captions each is its own.
        """
        if self.described is not None:
            return self.described
        if not self.captions:
            return np.arange(len(self.pictures))
        return np.unique([caption.text for caption in self.captions], return_inverse=True)[1]

    @cached_property
    def clusters(self) -> np.ndarray:
        """The independent unit of each picture, (N,): what it was asked for.

        Where a few prompts were asked again and again each picture is its own: the intervals then
        hold for these prompts.
        """
        is_few = len(np.unique(self.asked)) < MIN_CLUSTERS
        return np.arange(len(self.asked)) if is_few else self.asked

    @property
    def knows_faces(self) -> bool:
        """Whether the faces that the captions describe can be measured beside the pictures."""
        return self.described is not None and len(self.test) >= MIN_CLUSTERS

    def require_captions(self) -> list[Caption]:
        """The captions of the pictures.

        Raises:
            NotMeasured: they are not known.
        """
        if not self.captions:
            raise NotMeasured("the captions of the pictures are not known: give --captions")
        return self.captions

    @property
    def can_encode(self) -> bool:
        """Whether real faces can be encoded and decoded again."""
        return self.model is not None and RECONSTRUCTED not in self.not_measured

    @cached_property
    def reference(self) -> FaceImages:
        """The real faces that distances are measured to.

        Raises:
            NotMeasured: they are too few.
        """
        everything = sets.in_random_order(self.test.faces, None)
        found = {"test": self.test, "train": self.train, "all": everything}[self.plan.reference]
        if len(found) < MIN_CLUSTERS:
            raise NotMeasured(
                f"{len(found)} real faces are too few to compare with: {MIN_CLUSTERS} in the test "
                "split, or evaluation.reference=train"
            )
        return found

    @cached_property
    def compared_sets(self) -> dict[str, ImageSet]:
        """The sets whose distance, recall and precision are compared."""
        found: dict[str, ImageSet] = {GENERATED: self.pictures}
        if self.plan.reference != "all" and len(self.validation) >= MIN_CLUSTERS:
            found[REAL] = self.validation
            if self.can_encode:
                found[RECONSTRUCTED] = self.reconstructed(self.validation)
        if self.model and self.request:
            folder = self.folder / "generated"
            found[CONTROL] = sets.of_untrained(self.model, self.request, folder)
        return found

    def reconstructed(self, images: ImageSet) -> ImageSet:
        """Real faces through the model's autoencoder."""
        folder = self.folder / "reconstructed"
        return sets.through_autoencoder(self.model, images, folder, self.workers)

    def features(self, network: FeatureNetwork, images: ImageSet) -> Tensor:
        """Features (N, D) of a set, extracted once, by all processes together."""
        folder = self.folder / "features"
        return cached_features(network, images, folder, self.device, self.workers)

    def compared(self) -> Iterator[tuple[str, dict[str, Features], Tensor]]:
        """Each feature space, the sets in it, and the reference (M, D).

        The sets have one n, `COMPARED` at most; the control may have fewer, and ALL has every
        picture.
        """
        for space, network in self.networks.spaces.items():
            reference = self.features(network, self.reference)
            values = {
                name: self.features(network, each) for name, each in self.compared_sets.items()
            }
            n = min(COMPARED, *(len(x) for name, x in values.items() if name != CONTROL))
            if n < len(self.pictures):
                values[ALL] = values[GENERATED]
            found = {}
            for name, each in values.items():
                faces = self.clusters if name in (GENERATED, ALL) else np.arange(len(each))
                kept = slice(None if name == ALL else n)
                found[name] = Features(each[kept], faces[kept])
            yield space, found, reference

    @cached_property
    def reliable(self) -> tuple[str, ...]:
        """The attributes that the classifier reads well on validation faces."""
        readings = pd.DataFrame(self.networks.judge_facts["validation"]).set_index("name")
        return reliable_attributes(readings, self.plan.min_balanced_accuracy)

    def decided(self, images: ImageSet) -> np.ndarray:
        """What the attribute classifier sees in each image: bool (N, 40).

        Raises:
            NotMeasured: there is no classifier.
        """
        judge = self.networks.judge
        if judge is None:
            raise NotMeasured(self.networks.missing[JUDGE])
        weights = self.networks.judge_weights
        answers = FeatureNetwork("attributes", lambda x: judge(x).sigmoid(), weights)
        return (self.features(answers, images) > judge.thresholds.cpu()).numpy()

    def ask(self, question: Callable[["Evaluation"], Table]) -> Table:
        """The table of a question; empty, with the reason noted, where it cannot be answered."""
        try:
            found = question(self)
        except NotMeasured as error:
            name = question.__module__.rpartition(".")[2]
            self.not_measured[name] = str(error)
            print(f"not measured: {name}: {error}")
            return []
        answered = {each.question for each in found}  # perhaps before, by the same cell
        self.table = [each for each in self.table if each.question not in answered] + found
        return found

    def save(self, figures: Mapping[str, Figure]) -> Path:
        """Write everything at once and return its folder; what was there is replaced as a whole.

        Args:
            figures: by the names of their files.
        """
        folder = self.folder / "evaluations" / self.name
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_json(unfinished / METRICS, [row._asdict() for row in self.table], allow_nan=False)
        missing = self.networks.missing | self.not_measured
        facts = {"not_measured": missing, "features": self._stored_features()}
        write_json(unfinished / PROTOCOL, self.protocol | facts)
        texts = [caption.text for caption in self.captions] or [""] * len(self.names)
        columns = {"file_name": self.names, "text": texts, "face": self.clusters, **self.notes}
        pd.DataFrame(columns).to_csv(unfinished / PICTURES, index=False)
        for name, figure in figures.items():
            figure.savefig(unfinished / f"{name}.png", dpi=110)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        return folder

    def _stored_features(self) -> dict[str, list[str]]:
        """In each space the files of the features of the pictures and of the reference, where both
        were extracted.
        """
        try:
            images, folder = (self.pictures, self.reference), self.folder / "features"
        except NotMeasured:
            return {}
        files = {
            space: [stored_at(network, each, folder) for each in images]
            for space, network in self.networks.spaces.items()
        }
        whole = {space: pair for space, pair in files.items() if all(map(Path.is_file, pair))}
        return {space: [file.name for file in pair] for space, pair in whole.items()}
