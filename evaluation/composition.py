"""Are the pictures of the same kinds of faces as the real ones? Shares of attributes on both sides.

One judge looks at both, so that its own errors do not count as a difference.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.checks import require_enough
from evaluation.estimate import Estimate, proportion

LEAST = 50  # images of a side
MARGIN = 0.1  # a difference that is surely larger makes another population


@dataclass(frozen=True)
class Share:
    """How often an attribute is seen in the pictures and in the real faces."""

    name: str
    generated: Estimate
    real: Estimate
    difference: Estimate  # generated - real
    differs: bool  # the whole interval is beyond the margin


def composition(
    generated: np.ndarray, real: np.ndarray, reliable: Collection[str]
) -> tuple[Share, ...]:
    """Compare the shares of the attributes that the judge reads well, the largest difference first.

    Args:
        generated, real: bool (N, 40) and (M, 40), what the judge sees.

    Raises:
        TooFewSamples: fewer than 50 images on a side.
    """
    require_enough(min(len(generated), len(real)), LEAST, "a comparison of shares")
    shares = []
    for column, name in enumerate(ATTRIBUTES):
        if name in reliable:
            sides = (proportion(side[:, column].sum(), len(side)) for side in (generated, real))
            shares.append(_share(name, *sides))
    return tuple(sorted(shares, key=lambda share: -abs(share.difference.value)))


def _share(name: str, generated: Estimate, real: Estimate) -> Share:
    """Both with the interval of their difference: Newcombe 1998, method 10."""
    value = generated.value - real.value
    below = sqrt((generated.value - generated.low) ** 2 + (real.high - real.value) ** 2)
    above = sqrt((generated.high - generated.value) ** 2 + (real.value - real.low) ** 2)
    difference = Estimate(value, value - below, value + above, min(generated.n, real.n))
    differs = difference.low > MARGIN or difference.high < -MARGIN
    return Share(name, generated, real, difference, differs)


def table_lines(shares: Sequence[Share], most: int = 8) -> list[str]:
    """The largest differences as the lines of a table."""
    lines = [f"{'attribute':22s}{'generated':>11s}{'real':>8s}  difference"]
    for share in shares[:most]:
        d = share.difference
        lines.append(
            f"{share.name:22s}{share.generated.value:11.2f}{share.real.value:8.2f}  {d.value:+.2f} "
            f"[{d.low:+.2f}, {d.high:+.2f}]{'  another share' if share.differs else ''}"
        )
    return lines
