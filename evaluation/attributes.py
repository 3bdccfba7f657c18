"""Does the face show what was asked? Attribute consistency against its ceiling.

A judge (an attribute classifier) looks at the generated images, and only the values that a caption
states are scored: asked for and asked against apart, since most attributes are rare. The judge's
own rates on real test images are the ceiling, those on reconstructed ones tell what the autoencoder
takes away, and the same images with the captions of others what chance gives.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from custom_datasets.celeba_hq_dataset import ATTRIBUTES
from evaluation.checks import require_enough
from evaluation.estimate import (
    LEVEL,
    Estimate,
    bootstrap_interval,
    bootstrap_samples,
    derangement,
    proportion,
)

LEAST = 10  # samples on a side
RELIABLE = 0.85  # balanced accuracy on real test images that makes a judge of an attribute

_Asked = tuple[np.ndarray, np.ndarray]  # bool (N, 40): asked for, asked against


@dataclass(frozen=True)
class Judged:
    """What the judge says of real images, and what is true of them: bool (M, 40) each."""

    predicted: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Rates:
    """How often a judge sees what is there or asked for; None where a side has too few samples."""

    asked_for: int
    hit_rate: Estimate | None  # recall
    asked_against: int
    rejection_rate: Estimate | None  # share of those asked against that do not show it
    balanced_accuracy: Estimate | None  # mean of the two
    note: str  # which number is missing and why; empty where none is


@dataclass(frozen=True)
class AttributeRow:
    """One attribute on generated, real and reconstructed images."""

    name: str
    generated: Rates
    real: Rates
    reconstructed: Rates | None
    relative_hit_rate: float | None  # generated / real
    relative_to_reconstructed: float | None  # generated / reconstructed: without the autoencoder
    reliable: bool  # the judge's balanced accuracy on real images reaches the threshold


@dataclass(frozen=True)
class Summary:
    """A mean over attributes, with the means of its controls over the same attributes."""

    attributes: tuple[str, ...]
    generated: Estimate | None  # None where no attribute qualifies
    shuffled: Estimate | None  # the same images with the captions of others
    real: float | None
    reconstructed: float | None


@dataclass(frozen=True)
class AttributeReport:
    """All rows, and two means over the attributes that the judge can tell."""

    rows: tuple[AttributeRow, ...]
    headline: Summary  # balanced accuracy; of attributes with enough samples on both sides
    hit_rate: Summary  # of attributes asked for often enough; most are never asked against
    threshold: float


def attribute_report(
    predicted: np.ndarray,
    stated: Sequence[Mapping[str, bool]],
    real: Judged,
    reconstructed: Judged | None = None,
    threshold: float = RELIABLE,
    excluded: frozenset[str] = frozenset(),
    repeats: int = 1000,
    seed: int = 0,
) -> AttributeReport:
    """Compare what the judge sees with what the captions state.

    Args:
        predicted: bool (N, 40), the judge on one generated image a caption.
        stated: of each caption the values it asserts, `Caption.stated`.
        real, reconstructed: the judge on real test images and on those through the autoencoder.
        threshold: least balanced accuracy on real images, in [0, 1].
        excluded: attributes whose labels are disputed, so that no judge of them is reliable.

    Raises:
        ValueError: predictions that are not bool (N, 40), or a stated name that is no attribute.
        TooFewSamples: fewer than 10 images.
    """
    asked = asked_values(stated)
    _require_bool(predicted, len(stated), "generated")
    options = {"repeats": repeats, "seed": seed}
    generated_rates = rates(predicted, *asked, **options)
    real_rates = _rates_of(real, "real", options)
    other_rates = _rates_of(reconstructed, "reconstructed", options) if reconstructed else None
    rows = tuple(
        _row(
            name,
            generated_rates[i],
            real_rates[i],
            other_rates and other_rates[i],
            np.inf if name in excluded else threshold,
        )
        for i, name in enumerate(ATTRIBUTES)
    )
    headline = _summary(rows, "balanced_accuracy", balanced_accuracies, predicted, asked, options)
    hit_rate = _summary(rows, "hit_rate", hit_rates, predicted, asked, options)
    return AttributeReport(rows, headline, hit_rate, threshold)


def asked_values(stated: Sequence[Mapping[str, bool]]) -> _Asked:
    """Stated values as two bool (N, 40): asked for, asked against; both False where unsaid.

    Raises:
        ValueError: a name that is no attribute.
    """
    asked = np.zeros((2, len(stated), len(ATTRIBUTES)), dtype=bool)
    for row, values in enumerate(stated):
        for name, value in values.items():
            if name not in ATTRIBUTES:
                raise ValueError(f"caption {row} states {name!r}, which is none of the attributes")
            asked[0 if value else 1, row, ATTRIBUTES.index(name)] = True
    return asked[0], asked[1]


def hit_rates(predicted: np.ndarray, asked_for: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Share of images asked to show each attribute that do: (40,), nan where none was asked."""
    with np.errstate(invalid="ignore"):
        return (predicted & asked_for).sum(0) / asked_for.sum(0)


def balanced_accuracies(
    predicted: np.ndarray, asked_for: np.ndarray, against: np.ndarray
) -> np.ndarray:
    """Mean of hit rate and correct rejection of each attribute: (40,), nan where a side is empty.

    A judge or a model that does not look gets 0.5 (Brodersen et al. 2010).
    """
    rejections = hit_rates(~predicted, against, asked_for)
    return (hit_rates(predicted, asked_for, against) + rejections) / 2


def rates(
    predicted: np.ndarray,
    asked_for: np.ndarray,
    against: np.ndarray,
    repeats: int = 1000,
    seed: int = 0,
) -> list[Rates]:
    """The rates of all attributes with intervals: Wilson's of shares, bootstrap of their mean.

    Args:
        predicted, asked_for, against: bool (N, 40).

    Raises:
        TooFewSamples: fewer than 10 images.
    """
    require_enough(len(predicted), LEAST, "attribute consistency")
    arrays = (predicted, asked_for, against)
    samples = bootstrap_samples(balanced_accuracies, *arrays, repeats=repeats, seed=seed)
    return [_rates_of_one(*(array[:, i] for array in arrays), samples[:, i]) for i in range(40)]


def _rates_of_one(
    predicted: np.ndarray, asked_for: np.ndarray, against: np.ndarray, samples: np.ndarray
) -> Rates:
    n, m = int(asked_for.sum()), int(against.sum())
    hits = proportion((predicted & asked_for).sum(), n) if n >= LEAST else None
    rejections = proportion((~predicted & against).sum(), m) if m >= LEAST else None
    balanced = None
    if hits and rejections:
        low, high = np.nanquantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        middle = (hits.value + rejections.value) / 2
        balanced = Estimate(middle, float(low), float(high), n + m)
    short = [f"{count} {side}" for count, side in ((n, "for"), (m, "against")) if count < LEAST]
    note = f"asked only {' and '.join(short)}, under {LEAST}" if short else ""
    return Rates(n, hits, m, rejections, balanced, note)


def _rates_of(judged: Judged, name: str, options: dict[str, int]) -> list[Rates]:
    _require_bool(judged.truth, len(judged.predicted), f"true {name}")
    _require_bool(judged.predicted, len(judged.truth), name)
    return rates(judged.predicted, judged.truth, ~judged.truth, **options)


def _row(
    name: str, generated: Rates, real: Rates, reconstructed: Rates | None, threshold: float
) -> AttributeRow:
    reliable = real.balanced_accuracy is not None and real.balanced_accuracy.value >= threshold
    relative = (_ratio(generated, real), _ratio(generated, reconstructed))
    return AttributeRow(name, generated, real, reconstructed, *relative, reliable)


def _ratio(generated: Rates, ceiling: Rates | None) -> float | None:
    """Hit rate over the judge's own on other images; None where either cannot be told."""
    if ceiling is None or not generated.hit_rate or not ceiling.hit_rate:
        return None
    return generated.hit_rate.value / ceiling.hit_rate.value if ceiling.hit_rate.value else None


def _summary(
    rows: Sequence[AttributeRow],
    rate: str,
    statistic: Callable[..., np.ndarray],
    predicted: np.ndarray,
    asked: _Asked,
    options: dict[str, int],
) -> Summary:
    """The mean of one rate over the reliable attributes that have it."""
    chosen = [row for row in rows if row.reliable and getattr(row.generated, rate)]
    if not chosen:
        return Summary((), None, None, None, None)
    columns = [ATTRIBUTES.index(row.name) for row in chosen]
    seen, wanted, unwanted = (array[:, columns] for array in (predicted, *asked))
    order = derangement(len(seen), options["seed"])

    def mean(*arrays: np.ndarray) -> float:
        return float(np.nanmean(statistic(*arrays)))  # a resample may miss a rare side

    return Summary(
        attributes=tuple(row.name for row in chosen),
        generated=bootstrap_interval(mean, seen, wanted, unwanted, **options),
        shuffled=bootstrap_interval(mean, seen, wanted[order], unwanted[order], **options),
        real=_mean_value([row.real for row in chosen], rate),
        reconstructed=_mean_value([row.reconstructed for row in chosen], rate),
    )


def _mean_value(all_rates: Sequence[Rates | None], rate: str) -> float | None:
    estimates = [getattr(one, rate) for one in all_rates if one is not None]
    values = [estimate.value for estimate in estimates if estimate is not None]
    return float(np.mean(values)) if len(values) == len(all_rates) else None


def _require_bool(values: np.ndarray, n: int, name: str) -> None:
    if values.dtype != bool or values.shape != (n, len(ATTRIBUTES)):
        raise ValueError(
            f"the {name} attribute values are {values.dtype} {values.shape}, expected bool "
            f"{(n, len(ATTRIBUTES))}: of logits pass logits > 0"
        )


def share_of_stated(
    predicted: np.ndarray,
    stated: Sequence[Mapping[str, bool]],
    report: AttributeReport,
    repeats: int = 1000,
    seed: int = 0,
) -> Estimate | None:
    """Share of all stated values of reliable attributes that the judge sees, over prompts.

    For few pictures, where the rates of single attributes would be noise. None where fewer than 10
    captions state a reliable attribute.
    """
    columns = [i for i, row in enumerate(report.rows) if row.reliable]
    asked_for, against = (array[:, columns] for array in asked_values(stated))
    seen = predicted[:, columns]
    right = (seen & asked_for).sum(1) + (~seen & against).sum(1)  # (N,)
    said = asked_for.sum(1) + against.sum(1)  # (N,)
    right, said = right[said > 0], said[said > 0]
    if len(said) < LEAST:
        return None
    return bootstrap_interval(
        lambda right, said: right.sum() / said.sum(), right, said, repeats=repeats, seed=seed
    )


def table_lines(report: AttributeReport) -> list[str]:
    """The report as lines of text: attributes that were asked for, the most often first."""
    head = f"{'attribute':22s}{'n':>5s}{'hit':>7s}{'of real':>9s}{'n not':>7s}{'rejected':>10s}"
    lines = [head + f"{'balanced':>10s}{'real':>8s}{'decoded':>9s}"]
    for row in sorted(report.rows, key=lambda row: -row.generated.asked_for):
        if row.generated.asked_for + row.generated.asked_against == 0:
            continue
        decoded = row.reconstructed.balanced_accuracy if row.reconstructed else None
        lines.append(
            f"{row.name:22s}{row.generated.asked_for:5d}{_cell(row.generated.hit_rate):>7s}"
            f"{'-' if row.relative_hit_rate is None else format(row.relative_hit_rate, '.2f'):>9s}"
            f"{row.generated.asked_against:7d}{_cell(row.generated.rejection_rate):>10s}"
            f"{_cell(row.generated.balanced_accuracy):>10s}{_cell(row.real.balanced_accuracy):>8s}"
            f"{_cell(decoded):>9s}{'' if row.reliable else '  not a judge of this'}"
        )
    for name, summary in (("balanced accuracy", report.headline), ("hit rate", report.hit_rate)):
        if summary.generated:
            e, s = summary.generated, summary.shuffled
            lines.append(
                f"mean {name} over {len(summary.attributes)} reliable attributes: {e.value:.3f} "
                f"[{e.low:.3f}, {e.high:.3f}]; captions of others {s.value:.3f}; real "
                f"{summary.real:.3f}"
            )
    return lines


def _cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.2f}"
