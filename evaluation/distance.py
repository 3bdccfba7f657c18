"""How far is the set from real faces? Fréchet and kernel distance, in each feature space.

Both depend on n, the Fréchet distance most, so generated pictures, held-out real faces (`real`, the
floor) and the same through the autoencoder (`reconstructed`) have one n. The control is an
untrained model. With some hundred pictures a Fréchet distance hardly changes, and can fall, when
features shrink towards their mean: read it beside `variety`. Features (N, D) go in; the arithmetic
is float64.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from evaluation.estimate import jackknife
from evaluation.session import Evaluation, Features
from evaluation.table import ALL, Table, row

IN_INCEPTION, ELSEWHERE = ("FID", "KID"), ("frechet_distance", "kernel_distance")


class Frechet:
    """The squared Fréchet distance to a reference whose Gaussian is fitted once.

    Heusel et al. 2017, eq. 6; the value is torch-fidelity's.
    """

    def __init__(self, reference: Tensor) -> None:
        reference = reference.double()
        self.mean = reference.mean(0)  # (D,)
        covariance = torch.atleast_2d(torch.cov(reference.T))
        values, vectors = torch.linalg.eigh(covariance)
        self.root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # (D, D)
        self.trace = float(covariance.trace())

    def __call__(self, features: Tensor) -> float:
        """Distance of features (N, D)."""
        centred = (features.double() - self.mean) / (len(features) - 1) ** 0.5
        shift = centred.mean(0)
        centred = centred - shift
        # The eigenvalues of A B are those of B^(1/2) A B^(1/2), and A is centred^T centred.
        seen = centred @ self.root
        gram = seen @ seen.T if len(seen) < seen.shape[1] else seen.T @ seen
        overlap = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
        between = shift.square().sum() * (len(features) - 1)
        return float(between + centred.square().sum() + self.trace - 2 * overlap)


class Kernel:
    """The unbiased MMD^2 to a reference with the kernel (x.y / D + 1)^3, that of KID.

    Binkowski et al. 2018; over all pairs in place of random subsets. It can be slightly negative.
    """

    def __init__(self, features: Tensor, reference: Tensor) -> None:
        features, reference = features.double(), reference.double()
        self.own = _cubic(features, features).fill_diagonal_(0)  # (N, N)
        parts = reference.split(4096)
        self.across = sum(_cubic(features, part).sum(1) for part in parts) / len(reference)  # (N,)
        inner = sum(float(_cubic(part, reference).sum()) for part in parts)
        inner -= float(((reference.square().sum(1) / reference.shape[1] + 1) ** 3).sum())
        self.reference = inner / (len(reference) * (len(reference) - 1))

    def __call__(self, rows: Tensor) -> float:
        """Distance of some rows of the features."""
        n = len(rows)
        own = self.own[rows][:, rows].sum() / (n * (n - 1))
        return float(own - 2 * self.across[rows].mean()) + self.reference


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def distances(space: str, sets: Mapping[str, Features], reference: Tensor) -> Table:
    """Both distances of sets of features (N, D) to a reference (M, D), by the sets' names."""
    frechet = Frechet(reference)
    first, second = IN_INCEPTION if space == "Inception" else ELSEWHERE
    table: Table = []
    for name, (features, faces) in sets.items():
        found = jackknife(lambda rows, x=features: frechet(x[rows]), faces)
        table.append(row(first, space, name, *found))
    for name, (features, faces) in sets.items():
        if name != ALL:  # of 50,000 pictures the kernel would fill the memory
            kernel = Kernel(features, reference)
            found = jackknife(lambda rows, k=kernel: k(torch.from_numpy(rows)), faces)
            table.append(row(second, space, name, *found))
    return table


def answer(evaluation: Evaluation) -> Table:
    """The distances in every feature space."""
    return [each for compared in evaluation.compared() for each in distances(*compared)]
