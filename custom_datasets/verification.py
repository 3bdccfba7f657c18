"""Do attributes belong to these images? Two checks that a copy of CelebA-HQ has to pass.

The rates of common attributes are known, so a wrong column order or sign shows. A shift by one row
leaves the rates as they are: therefore sex is also read off tiny grey thumbnails by a linear probe,
which sees it plainly where labels and images line up and not at all where they do not.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from custom_datasets.celeba_files import ATTRIBUTES
from custom_datasets.celeba_hq_dataset import resize_and_crop, to_rgb
from custom_datasets.screening import examine

# Shares of the 30,000 faces of CelebA-HQ and of the 202,599 of CelebA.
CELEBA_HQ_RATES = {
    "Male": 0.369,
    "Young": 0.779,
    "Smiling": 0.470,
    "Eyeglasses": 0.049,
    "Wearing_Hat": 0.036,
    "Blond_Hair": 0.171,
    "Black_Hair": 0.220,
    "Bangs": 0.181,
    "No_Beard": 0.811,
}
CELEBA_RATES = {
    "Male": 0.417,
    "Young": 0.774,
    "Smiling": 0.482,
    "Eyeglasses": 0.065,
    "Wearing_Hat": 0.048,
    "Blond_Hair": 0.148,
    "Black_Hair": 0.239,
    "Bangs": 0.152,
    "No_Beard": 0.835,
}
TOLERANCE = 0.04  # CelebA's own splits differ from the whole by up to .03
ENOUGH = 1_000  # faces, below which rates and probe tell nothing
PROBED = 2_000  # faces that the probe looks at
THUMBNAIL = 24  # pixels
LEAST_AUC = 0.75  # .95 on CelebA-HQ as published, .51 where labels are shifted by one


def check_rates(attributes: np.ndarray, known: dict[str, float]) -> list[str]:
    """Lines that set the rates of attributes bool (N, 40) beside the known ones.

    Raises:
        ValueError: a rate is another (with at least 1,000 faces); names it.
    """
    lines, wrong = [], []
    for name, rate in known.items():
        found = float(attributes[:, ATTRIBUTES.index(name)].mean())
        lines.append(f"{name:12s} {found:.3f}, known {rate:.3f}")
        allowed = max(TOLERANCE, 4 * (rate * (1 - rate) / len(attributes)) ** 0.5)
        if len(attributes) >= ENOUGH and abs(found - rate) > allowed:
            wrong.append(lines[-1])
    if wrong:
        raise ValueError(
            "the attributes are not those of the faces they should be of; rates differ: "
            f"{'; '.join(wrong)}"
        )
    return lines


def thumbnail(path: Path) -> np.ndarray:
    """A grey thumbnail, float (576,)."""
    with Image.open(path) as image:
        image.draft(
            "RGB", (4 * THUMBNAIL, 4 * THUMBNAIL)
        )  # decodes a JPEG at a fraction of its size
        small = resize_and_crop(to_rgb(image), THUMBNAIL).convert("L")
    return np.asarray(small, dtype=float).ravel() / 255


def probe_auc(thumbnails: np.ndarray, labels: np.ndarray) -> float:
    """How well a ridge regression on one half of the thumbnails ranks the labels of the other."""
    features = np.hstack([thumbnails - thumbnails.mean(0), np.ones((len(thumbnails), 1))])
    train, test = slice(0, None, 2), slice(1, None, 2)
    x, y = features[train], labels[train].astype(float) - labels.mean()
    weights = np.linalg.solve(x.T @ x + 1.0 * np.eye(x.shape[1]), x.T @ y)
    order = (features[test] @ weights).argsort().argsort() + 1
    positive = labels[test].astype(bool)
    n, m = positive.sum(), (~positive).sum()
    return float((order[positive].sum() - n * (n + 1) / 2) / (n * m))


def check_alignment(paths: Sequence[Path], attributes: np.ndarray) -> float | None:
    """The probe's AUC for sex; None where there are too few faces to tell. What cannot be used as
    an image is passed over.

    Raises:
        ValueError: labels and images do not line up.
    """
    if len(paths) < ENOUGH:
        return None
    chosen = np.linspace(0, len(paths) - 1, min(PROBED, len(paths))).astype(int)
    chosen = np.array([i for i in chosen if examine(paths[i]) is None])
    chosen = np.random.default_rng(0).permutation(chosen)
    small = np.stack([thumbnail(paths[i]) for i in chosen])
    auc = probe_auc(small, attributes[chosen, ATTRIBUTES.index("Male")])
    if auc < LEAST_AUC:
        raise ValueError(
            f"labels and images do not line up: sex is read off the images with an AUC of "
            f"{auc:.2f} (0.5 is chance, {LEAST_AUC} the least). Are rows shifted, or reordered?"
        )
    return auc
