"""Is a picture copied from the training set? The nearest training face, by its pixels.

Two pictures are alike by the correlation of their fine structure, at the best of small shifts.
Measured on 8,000 training faces at 128 px: verbatim, mirrored and recompressed copies, shifts of up
to 4 px, blur and noise give .92 and more, the nearest of 2,000 held-out faces at most .82. The
threshold does not depend on held-out faces: data may hold a photograph twice, once in the training
set, and such count as copies (`real`). Nearly all of CelebA-HQ's are known and in no split.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from evaluation.estimate import MIN_CLUSTERS, jackknife
from evaluation.features import extract
from evaluation.networks import FeatureNetwork
from evaluation.session import Evaluation
from evaluation.table import GENERATED, REAL, Table, row

COPY = 0.9  # correlation from which on two pictures are one
SIDE, COARSE, SHIFT = 64, 16, 4  # pixels: compared, searched, and the shifts that are tried
CANDIDATES = 10  # training faces that are compared with each picture
SPACE = "pixels"


class Match(NamedTuple):
    """The training face that is most like a picture."""

    correlation: Tensor  # float (N,)
    face: Tensor  # int (N,)
    is_mirrored: Tensor  # bool (N,): it is so in a mirror


def prints(images: Tensor) -> Tensor:
    """Images uint8 (N, 3, H, W) as float32 (N, 16 * 16 + 64 * 64): coarse and fine structure."""
    grey = transforms.rgb_to_grayscale(images.float())
    coarse = transforms.resize(grey, [COARSE, COARSE], antialias=True).flatten(1)
    fine = transforms.resize(grey, [SIDE, SIDE], antialias=True)
    fine = fine - transforms.gaussian_blur(fine, [17, 17], [4.0, 4.0])
    window = torch.hann_window(SIDE, periodic=False, device=images.device).sqrt()
    fine = (fine[:, 0] * window[:, None] * window).flatten(1)  # edges do not follow a shift
    return torch.cat([_normalized(coarse), _normalized(fine)], 1)


PRINTS = FeatureNetwork("nearest training face", prints)


def _normalized(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)


def nearest(pictures: Tensor, train: Tensor) -> Match:
    """The most similar training face of each picture, also in a mirror.

    Args:
        pictures, train: prints (N, P) and (M, P).
    """
    parts = [
        (_best_match(part, train), _best_match(mirrored(part), train))
        for part in pictures.split(64)
    ]
    (plain, face), (flipped, other) = (
        [torch.cat(each) for each in zip(*side, strict=True)] for side in zip(*parts, strict=True)
    )
    is_mirrored = flipped > plain
    return Match(plain.maximum(flipped), torch.where(is_mirrored, other, face), is_mirrored)


def _best_match(part: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """For prints (B, P) the best correlation with a training face, and which, (B,) each."""
    likely = part[:, : COARSE**2] @ train[:, : COARSE**2].T  # (B, M)
    faces = likely.topk(min(CANDIDATES, len(train))).indices  # (B, 10)
    value, which = _best_shift(part[:, None, COARSE**2 :], train[faces, COARSE**2 :]).max(1)
    return value, faces.gather(1, which[:, None])[:, 0]


def mirrored(rows: Tensor) -> Tensor:
    """The prints of the pictures in a mirror."""
    coarse, fine = rows.split([COARSE**2, SIDE**2], 1)
    flipped = (coarse.unflatten(1, (COARSE, COARSE)), fine.unflatten(1, (SIDE, SIDE)))
    return torch.cat([each.flip(-1).flatten(1) for each in flipped], 1)


def _best_shift(a: Tensor, b: Tensor) -> Tensor:
    """The highest correlation of fine structure (..., 64 * 64) over shifts of up to 4 px."""
    spectra = [torch.fft.rfft2(rows.unflatten(-1, (SIDE, SIDE))) for rows in (a, b)]
    correlation = torch.fft.irfft2(spectra[0] * spectra[1].conj(), s=(SIDE, SIDE))
    near = [*range(SHIFT + 1), *range(-SHIFT, 0)]
    return correlation[..., near, :][..., near].flatten(-2).amax(-1)


def copies(matches: Mapping[str, Match], clusters: Mapping[str, np.ndarray]) -> Table:
    """The share of copies and the mean correlation with the nearest training face, of all sets."""
    table: Table = []
    for name, match in matches.items():
        value = match.correlation.double().numpy()
        share = jackknife(lambda rows, v=value: (v[rows] >= COPY).mean(), clusters[name], True)
        mean = jackknife(lambda rows, v=value: v[rows].mean(), clusters[name])
        table.append(row("copies", SPACE, name, *share))
        table.append(row("nearest_training_face", SPACE, name, *mean))
    return table


def answer(evaluation: Evaluation) -> Table:
    """Copies among the pictures, beside held-out faces; keeps the matches for a figure."""
    train, own, heldout = (  # quick to extract again, and large
        extract(PRINTS, images, evaluation.device, evaluation.workers)
        for images in (evaluation.train, evaluation.pictures, evaluation.test)
    )
    matches, clusters = {GENERATED: nearest(own, train)}, {GENERATED: evaluation.clusters}
    if len(heldout) >= MIN_CLUSTERS:
        matches[REAL], clusters[REAL] = nearest(heldout, train), np.arange(len(heldout))
    evaluation.matches = matches[GENERATED]
    return copies(matches, clusters)
