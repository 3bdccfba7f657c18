"""Does the face show what was asked? Attribute consistency, read by the attribute classifier.

Only what a caption states is scored: asked for, and asked against. `real` are the faces that the
captions describe under the same questions, `reconstructed` the same through the autoencoder, and
the control are the generated pictures with captions of others. Real faces are no ceiling: guidance
makes what is asked for plainer than photographs show it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.clip_score import others
from evaluation.estimate import NotMeasured, jackknife
from evaluation.session import Evaluation
from evaluation.table import CONTROL, GENERATED, REAL, RECONSTRUCTED, Table, row

MIN_FACES = 10  # on a side of an attribute, for its rate to count
MEAN, SIDES = "mean of attributes", ("asked_for", "asked_against")


class Asked(NamedTuple):
    """What captions state: bool (N, 40) each, both False where unsaid."""

    wanted: np.ndarray
    unwanted: np.ndarray


def asked_values(
    stated: Sequence[Mapping[str, bool]], reliable: Collection[str] = ATTRIBUTES
) -> Asked:
    """The values that captions state, of the attributes that the classifier reads well."""
    asked = np.zeros((2, len(stated), len(ATTRIBUTES)), dtype=bool)
    for slot, values in enumerate(stated):
        for name, value in values.items():
            asked[0 if value else 1, slot, ATTRIBUTES.index(name)] = name in reliable
    return Asked(*asked)


class Rates:
    """Shares of what is asked for that is shown, and asked against that is not, per attribute."""

    def __init__(self, seen: np.ndarray, asked: Asked) -> None:
        """
        Args:
            seen: bool (N, 40), what the classifier sees in the picture of each caption.
        """
        self.right = np.stack([seen & asked.wanted, ~seen & asked.unwanted], 1)  # (N, 2, 40)
        self.said = np.stack(asked, 1)  # (N, 2, 40)

    def of_each(self, rows: np.ndarray) -> np.ndarray:
        """(2, 40): asked for, asked against; 0 where nothing is asked."""
        return self.right[rows].sum(0) / np.maximum(self.said[rows].sum(0), 1)

    def means(self, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Means over the attributes of chosen sides, bool (2, 40): asked for, asked against, and
        balanced accuracy, the mean of both sides of those that have both.
        """
        rates, both = self.of_each(rows), chosen.all(0)
        means = [rates[side][chosen[side]].mean() for side in (0, 1)]
        return np.array([*means, rates[:, both].mean()])

    def shown(self, rows: np.ndarray) -> float:
        """Share of all stated values that are shown: for few pictures, as in a sweep."""
        return float(self.right[rows].sum() / max(self.said[rows].sum(), 1))


def consistency(
    seen: Mapping[str, np.ndarray], asked: Asked, faces: np.ndarray, order: np.ndarray
) -> Table:
    """Rates of each attribute and their means, of all sets under the same questions.

    Args:
        seen: by the set's name bool (N, 40), what the classifier sees in the picture (or face) of
            each caption; GENERATED among them.
        faces: (N,) the independent unit of each caption, such as the face that it describes.
        order: (N,) the slot of another caption for each, see `others`.

    Raises:
        NotMeasured: no attribute is asked for and against of 10 faces each.
    """
    counts = np.array([[len(np.unique(faces[column])) for column in side.T] for side in asked])
    chosen = counts >= MIN_FACES  # (2, 40)
    if not chosen.all(0).any():
        raise NotMeasured(f"no attribute is asked for and against of {MIN_FACES} faces each")
    sets = {name: Rates(values, asked) for name, values in seen.items()}
    sets[CONTROL] = Rates(seen[GENERATED], Asked(*(side[order] for side in asked)))
    table: Table = []
    for name, rates in sets.items():
        means = jackknife(lambda rows, r=rates: r.means(rows, chosen), faces, is_share=True)
        for question, each in zip((*SIDES, "balanced_accuracy"), means, strict=True):
            table.append(row(question, MEAN, name, each))
    for name in (GENERATED, REAL):
        if name in sets:
            table += _each_attribute(name, sets[name], counts, faces)
    return table


def _each_attribute(name: str, rates: Rates, counts: np.ndarray, faces: np.ndarray) -> Table:
    """The rows of attributes; few faces are asked for a rare one, and they alone decide its width.

    Args:
        counts: (2, 40), how many faces are asked.
    """

    def statistic(rows: np.ndarray) -> np.ndarray:
        return rates.of_each(rows).ravel()

    found = jackknife(statistic, faces, is_share=True, counted=counts.ravel())
    return [
        row(SIDES[side], ATTRIBUTES[column], name, each)
        for (side, column), each in zip(np.ndindex(counts.shape), found, strict=True)
        if each.n >= MIN_FACES
    ]


def answer(evaluation: Evaluation) -> Table:
    """The rates, on the attributes that the classifier reads well."""
    captions = evaluation.require_captions()
    if not any(caption.stated for caption in captions):
        raise NotMeasured("what the captions state is not known: they are none of this data's")
    seen = {GENERATED: evaluation.decided(evaluation.pictures)}
    asked = asked_values([caption.stated for caption in captions], evaluation.reliable)
    if evaluation.knows_faces:
        real = {REAL: evaluation.test}
        if evaluation.can_encode:
            real[RECONSTRUCTED] = evaluation.reconstructed(evaluation.test)
        for name, images in real.items():
            seen[name] = evaluation.decided(images)[evaluation.described]
    rates = Rates(seen[GENERATED], asked)
    evaluation.notes["stated"] = rates.said.sum((1, 2))
    evaluation.notes["shown"] = rates.right.sum((1, 2))
    return consistency(seen, asked, evaluation.clusters, others(evaluation.asked))
