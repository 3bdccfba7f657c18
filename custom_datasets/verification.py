"""Do attributes belong to these images? Two checks that a copy of CelebA-HQ has to pass.

The rates of common attributes are known, so a wrong column order or sign shows. A shift by one row
leaves the rates as they are: therefore a linear probe also reads sex from tiny grey thumbnails,
which sees it plainly where labels and images line up and not at all where they do not.

CelebA-HQ is not in random order: of its first thousand faces 24 % are male, of all 37 %. Rates are
therefore compared with those of the very faces where their indices are known, and else with the
range over all stretches of CelebA-HQ that are as long. `celeba_hq_facts.json` holds what that
needs: the count of each attribute among every 1,000 faces, and a digest of every 100 rows.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from custom_datasets.celeba_files import ATTRIBUTES, OFFICIAL_COUNT
from custom_datasets.celeba_hq_dataset import IMAGE_FORMATS, resize_and_crop, to_rgb
from custom_datasets.screening import examine

CELEBA_COUNT = 202_599
CELEBA_RATES = {  # shares of CelebA's 202,599 faces
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
BLOCK, DIGESTED = 1_000, 100  # faces that a count and a digest are of
TOLERANCE = 0.07  # CelebA's own splits differ from the whole by up to .055
UNSTEADY = ("Big_Lips", "Narrow_Eyes", "Wavy_Hair")  # but these by up to .16: not compared
ENOUGH = 1_000  # faces, below which rates and probe tell nothing
PROBED = 2_000  # faces that the probe looks at
LEAST_OF_EACH = 100  # men and women among them, below which the probe tells nothing
THUMBNAIL = 24  # pixels
LEAST_AUC = 0.75  # .88 to .95 on CelebA-HQ as published, .43 to .55 where labels are shifted by one


class Known(NamedTuple):
    """What the rates of a set of faces should be: float (40,) each, NaN where nothing is known."""

    low: np.ndarray
    high: np.ndarray
    margin: np.ndarray


@cache
def block_rates() -> np.ndarray:
    """Rates of the 40 attributes among each 1,000 successive faces of CelebA-HQ: (30, 40)."""
    return np.array(_facts()["counts"]) / BLOCK


@cache
def _facts() -> dict[str, list]:
    return json.loads((Path(__file__).parent / "celeba_hq_facts.json").read_text())


def digests(attributes: np.ndarray) -> list[str]:
    """A digest of every 100 whole rows of attributes bool (N, 40)."""
    whole = len(attributes) // DIGESTED * DIGESTED
    packed = np.packbits(attributes[:whole], axis=1).reshape(-1, DIGESTED * len(ATTRIBUTES) // 8)
    return [sha256(rows.tobytes()).hexdigest()[:8] for rows in packed]


def is_in_official_order(attributes: np.ndarray) -> bool:
    """Whether row i of attributes bool (N, 40) is that of CelebA-HQ's face i, for all i.

    False where fewer than 100 rows leave it open.
    """
    found = digests(attributes)
    return len(found) > 0 and found == _facts()["digests"][: len(found)]


def known_of_indices(indices: np.ndarray) -> Known:
    """The rates of faces with these CelebA-HQ indices."""
    counts = np.bincount(indices // BLOCK, minlength=OFFICIAL_COUNT // BLOCK)[:, None]
    rates = (counts * block_rates()).sum(0) / counts.sum()
    # Within a block the faces count as drawn without replacement: a whole block has no variance.
    variance = counts * block_rates() * (1 - block_rates()) * (BLOCK - counts) / (BLOCK - 1)
    return Known(rates, rates, _margin(np.sqrt(variance.sum(0)) / counts.sum()))


def known_of_count(count: int) -> Known:
    """The rates of that many faces of CelebA-HQ of which nothing else is known."""
    blocks = np.clip(count // BLOCK, 1, len(block_rates()))
    sums = np.vstack([np.zeros(len(ATTRIBUTES)), block_rates().cumsum(0)])
    stretches = (sums[blocks:] - sums[:-blocks]) / blocks
    spread = np.sqrt(block_rates().mean(0) * (1 - block_rates().mean(0)) / count)
    return Known(stretches.min(0), stretches.max(0), _margin(spread))


def known_of_celeba(count: int) -> Known:
    """The rates of that many faces of CelebA."""
    rates = np.array([CELEBA_RATES.get(name, np.nan) for name in ATTRIBUTES])
    return Known(rates, rates, _margin(np.sqrt(rates * (1 - rates) / count)))


def _margin(spread: np.ndarray) -> np.ndarray:
    margin = np.maximum(TOLERANCE, 4 * spread)
    return np.where(np.isin(ATTRIBUTES, UNSTEADY), np.nan, margin)


def rate_lines(attributes: np.ndarray, known: Known) -> list[str]:
    """Lines that set common rates of attributes bool (N, 40) next to the known ones."""
    found = attributes.mean(0)
    return [_line(ATTRIBUTES.index(name), found, known) for name in CELEBA_RATES]


def check_rates(attributes: np.ndarray, known: Known) -> list[str]:
    """The lines of `rate_lines`, where all rates are the known ones. Faces of one sex are a chosen
    part, whose rates tell nothing.

    Raises:
        ValueError: a rate is another (with at least 1,000 faces); names it and the likely cause.
    """
    found = attributes.mean(0)
    wrong = _differing(found, known)
    is_chosen = found[ATTRIBUTES.index("Male")] in (0, 1)
    if len(attributes) >= ENOUGH and wrong and not is_chosen:
        examples = "; ".join(_line(i, found, known) for i in wrong[:6])
        raise ValueError(
            "the attributes are not those of the faces they should be of; "
            f"{len(wrong)} rates differ: {examples}."
            f"{_likely_cause(found, known, len(attributes))}"
        )
    return rate_lines(attributes, known)


def _differing(found: np.ndarray, known: Known) -> list[int]:
    below, above = known.low - known.margin, known.high + known.margin
    return np.flatnonzero((found < below) | (found > above)).tolist()


def _line(i: int, found: np.ndarray, known: Known) -> str:
    low, high = known.low[i], known.high[i]
    span = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
    return f"{ATTRIBUTES[i]} {found[i]:.3f}, known {span}"


def _likely_cause(found: np.ndarray, known: Known, count: int) -> str:
    if not _differing(1 - found, known):
        return " Every sign is reversed: is -1 or 0 written where 1 is meant?"
    others = {
        "of other faces of CelebA-HQ (were the images renumbered?)": known_of_count(count),
        "of CelebA, which is not CelebA-HQ (import it with --celeba)": known_of_celeba(count),
    }
    fitting = [name for name, rates in others.items() if not _differing(found, rates)]
    if fitting:
        return f" They could be those {' or '.join(fitting)}."
    return f" Are the columns in another order than {', '.join(ATTRIBUTES[:3])}, ...?"


def check_table(where: str, rows: Mapping[str, np.ndarray]) -> None:
    """Check the rates of a whole attribute file, CelebA's or CelebA-HQ's; not those of a part.

    Args:
        where: the file, for the message.

    Raises:
        ValueError: the rates are others.
    """
    known = {OFFICIAL_COUNT: known_of_count, CELEBA_COUNT: known_of_celeba}.get(len(rows))
    if known:
        try:
            check_rates(np.stack(list(rows.values())), known(len(rows)))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def thumbnail(path: Path) -> np.ndarray:
    """A grey thumbnail, float (576,)."""
    with Image.open(path, formats=IMAGE_FORMATS) as image:
        image.draft("RGB", (4 * THUMBNAIL, 4 * THUMBNAIL))  # decodes JPEG at a fraction of its size
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
        ValueError: labels and images do not line up; says whether they do one row further.
    """
    male = attributes[:, ATTRIBUTES.index("Male")]
    chosen = np.linspace(0, len(paths) - 1, min(PROBED, len(paths))).astype(int)
    chosen = np.array([i for i in chosen if examine(paths[i]) is None], dtype=int)
    of_each = min(male[chosen].sum(), (~male[chosen]).sum())
    if len(paths) < ENOUGH or of_each < LEAST_OF_EACH:
        return None
    chosen = np.random.default_rng(0).permutation(chosen)
    with ThreadPoolExecutor(4) as readers:
        small = np.stack(list(readers.map(thumbnail, [paths[i] for i in chosen])))
    auc = probe_auc(small, male[chosen])
    if auc < LEAST_AUC:
        raise ValueError(
            f"labels and images do not line up: sex is read from the images with an AUC of "
            f"{auc:.2f} (0.5 is chance, {LEAST_AUC} the least).{_shifted(small, male, chosen)}"
        )
    return auc


def _shifted(thumbnails: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> str:
    for shift, place in ((1, "before"), (-1, "after")):
        auc = probe_auc(thumbnails, np.roll(labels, shift)[chosen])
        if auc >= LEAST_AUC:
            return f" With the label of the row {place} it is {auc:.2f}: rows are shifted by one."
    return " Are the rows in another order than the images?"
