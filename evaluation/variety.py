"""Does the set show as many kinds of faces as there are, and only faces?

Recall is the share of real faces that the set reaches, precision the share of the set that real
faces reach, and the pair distance how far apart two pictures are, over that of two real faces.
Held-out faces (`real`) show the values to compare with: above them precision means lost variety,
not better pictures. Recall falls with repetition, shrinking and what makes all pictures unreal;
where a part of them is, or a kind of people is missing, distances show it more clearly.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from evaluation.estimate import jackknife
from evaluation.session import Evaluation, Features
from evaluation.table import ALL, Table, row

NEIGHBOR = 3  # k of Kynkaanniemi et al. 2019, and of torch-fidelity
CHUNK = 4096


class Reference:
    """Real faces with the ball of each, which reaches to its third neighbour."""

    def __init__(self, features: Tensor) -> None:
        self.features = features.double()
        radii, total, n = [], 0.0, len(features)
        for part in self.features.split(CHUNK):  # of 30,000 faces all would take 7 GB
            distances = torch.cdist(part, self.features)
            radii.append(_to_neighbor(distances))
            total += float(distances.sum())
        self.radii, self.pair_distance = torch.cat(radii), total / (n * (n - 1))  # (M,)


class Overlap:
    """Recall, precision (Kynkaanniemi et al. 2019, sec. 2) and pair distance of a set."""

    def __init__(self, features: Tensor, reference: Reference) -> None:
        features = features.double()
        self.own = torch.cdist(features, features)  # (N, N)
        self.across = torch.cdist(reference.features, features)  # (M, N)
        self.is_inside = (self.across <= reference.radii[:, None]).any(0)  # (N,)
        self.reference = reference

    def shares(self, rows: np.ndarray) -> np.ndarray:
        """Recall and precision of some rows."""
        radii = _to_neighbor(self.own[rows][:, rows])
        reached = (self.across[:, rows] <= radii).any(1)
        return torch.stack([reached.double().mean(), self.is_inside[rows].double().mean()]).numpy()

    def pair_distance(self, rows: np.ndarray) -> float:
        """Mean distance of two pictures over that of two real faces."""
        mean = self.own[rows][:, rows].sum() / (len(rows) * (len(rows) - 1))
        return float(mean) / self.reference.pair_distance


def _to_neighbor(distances: Tensor) -> Tensor:
    """The third smallest of each line, not counting the row itself."""
    return distances.topk(NEIGHBOR + 1, largest=False).values[:, -1]


def variety(space: str, sets: Mapping[str, Features], reference: Tensor) -> Table:
    """All three numbers of sets of features (N, D) beside a reference (M, D)."""
    prepared = Reference(reference)
    table: Table = []
    for name, (features, faces) in sets.items():
        if name == ALL:
            continue
        overlap = Overlap(features, prepared)
        recall, precision = jackknife(overlap.shares, faces, is_share=True)
        (ratio,) = jackknife(overlap.pair_distance, faces)
        found = {"recall": recall, "precision": precision, "pair_distance": ratio}
        table += [row(question, space, name, each) for question, each in found.items()]
    return table


def answer(evaluation: Evaluation) -> Table:
    """Recall, precision and pair distance in every feature space."""
    return [each for compared in evaluation.compared() for each in variety(*compared)]
