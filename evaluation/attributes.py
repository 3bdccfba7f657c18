"""Does the face show what was asked? Attribute consistency against its ceiling.

A judge (an attribute classifier) looks at the generated images, and only the values that a caption
states are scored: asked for and asked against apart, since most attributes are rare. The ceiling is
the same judge on the same questions about the real faces that the captions describe: captions state
some values of some people only, so its rates on all faces would be those of another population. The
same faces through the autoencoder tell what that takes away, and the generated images with the
captions of others what chance gives.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.attribute_rates import (
    Questions,
    Rates,
    Sampled,
    all_rates,
    pose,
    require_names,
    sample_rates,
)
from evaluation.estimate import Estimate, ratio_interval, share_interval
from evaluation.resampling import derangement


@dataclass(frozen=True)
class AttributeRow:
    """One attribute on generated, real and reconstructed images, asked the same questions."""

    name: str
    generated: Rates
    real: Rates | None
    reconstructed: Rates | None
    relative_hit_rate: Estimate | None  # generated / real, paired
    relative_to_reconstructed: Estimate | None  # generated / reconstructed: no autoencoder in it
    reliable: bool  # whether the judge may judge it


@dataclass(frozen=True)
class Summary:
    """A mean over attributes, with the means of its controls over the same questions."""

    attributes: tuple[str, ...]
    generated: Estimate | None  # None where no attribute qualifies
    shuffled: Estimate | None  # the same images with the captions of others
    real: Estimate | None  # the ceiling
    reconstructed: Estimate | None
    relative: Estimate | None  # generated / real, paired: 1 where pictures obey as faces do
    relative_to_reconstructed: Estimate | None


@dataclass(frozen=True)
class AttributeReport:
    """All rows, and two means over the attributes that the judge can tell."""

    rows: tuple[AttributeRow, ...]
    headline: Summary  # balanced accuracy; of attributes with enough faces on both sides
    hit_rate: Summary  # of attributes asked for often enough; most are never asked against
    reliable: tuple[str, ...]


def attribute_report(
    predicted: np.ndarray,
    stated: Sequence[Mapping[str, bool]],
    reliable: Collection[str],
    real: np.ndarray | None = None,
    reconstructed: np.ndarray | None = None,
    faces: np.ndarray | None = None,
    repeats: int = 1000,
    seed: int = 0,
) -> AttributeReport:
    """Compare what the judge sees with what the captions state.

    Args:
        predicted: bool (N, 40), the judge on one generated image a caption.
        stated: of each caption the values it asserts, `Caption.stated`.
        reliable: the attributes that the judge reads well on validation faces
            (`judge.reliable_attributes`); chosen on the faces of the ceiling, they would flatter
            it.
        real, reconstructed: bool (N, 40), the judge on the real face that each caption describes,
            and on that face through the autoencoder. None where the captions describe no face.
        faces: (N,) which face each caption describes, where several describe one.

    Raises:
        ValueError: predictions that are not bool (N, 40), or a name that is no attribute.
        TooFewSamples: fewer than 10 faces.
    """
    require_names(reliable)
    sets = {"generated": predicted, "real": real, "reconstructed": reconstructed}
    for name, values in sets.items():
        if values is not None:
            _require_bool(values, len(stated), name)
    questions = pose(stated, faces, repeats, seed)
    own = np.arange(len(stated))
    sampled = {
        name: None if values is None else sample_rates(values, questions, own)
        for name, values in sets.items()
    }
    others = derangement(len(stated), seed, questions.faces)
    shuffled = sample_rates(predicted, questions, others)
    rows = _rows(sampled, questions, reliable)
    return AttributeReport(
        rows,
        _summary(rows, "balanced_accuracy", sampled, shuffled, questions),
        _summary(rows, "hit_rate", sampled, shuffled, questions),
        tuple(name for name in ATTRIBUTES if name in reliable),
    )


def _rows(
    sampled: Mapping[str, Sampled | None], questions: Questions, reliable: Collection[str]
) -> tuple[AttributeRow, ...]:
    rates = {name: one and all_rates(one, questions) for name, one in sampled.items()}
    rows = []
    for i, name in enumerate(ATTRIBUTES):
        own, real, reconstructed = (each and each[i] for each in rates.values())
        ratios = (
            other and _hit_ratio(i, sampled["generated"], sampled[ceiling], other)
            for ceiling, other in (("real", real), ("reconstructed", reconstructed))
        )
        rows.append(AttributeRow(name, own, real, reconstructed, *ratios, name in reliable))
    return tuple(rows)


def _hit_ratio(i: int, own: Sampled, ceiling: Sampled, rates: Rates) -> Estimate | None:
    """Hit rate over the judge's own on the other images; None where either cannot be told."""
    if rates.hit_rate is None or rates.hit_rate.value == 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        samples = own.hit_samples[:, i] / ceiling.hit_samples[:, i]
    return ratio_interval(own.hits[i] / ceiling.hits[i], samples, rates.asked_for)


def _summary(
    rows: Sequence[AttributeRow],
    rate: str,
    sampled: Mapping[str, Sampled | None],
    shuffled: Sampled,
    questions: Questions,
) -> Summary:
    """The mean of one rate over the reliable attributes that have it."""
    chosen = [row.name for row in rows if row.reliable and getattr(row.generated, rate)]
    if not chosen:
        return Summary((), None, None, None, None, None, None)
    columns = [ATTRIBUTES.index(name) for name in chosen]
    n = len(np.unique(questions.faces))
    means = {
        name: one and _mean(one, rate, columns)
        for name, one in {**sampled, "shuffled": shuffled}.items()
    }
    shares = {
        name: mean and share_interval(mean[0], float(mean[1].std(ddof=1)), n)
        for name, mean in means.items()
    }
    value, samples = means["generated"]
    ratios = (
        ceiling and ratio_interval(value / ceiling[0], samples / ceiling[1], n)
        for ceiling in (means["real"], means["reconstructed"])
    )
    order = ("generated", "shuffled", "real", "reconstructed")
    return Summary(tuple(chosen), *(shares[name] for name in order), *ratios)


def _mean(sampled: Sampled, rate: str, columns: Sequence[int]) -> tuple[float, np.ndarray]:
    """The mean over attributes, and on every resample (repeats,); a rare side may be missed."""
    if rate == "hit_rate":
        values, samples = sampled.hits, sampled.hit_samples
    else:
        values, samples = sampled.balanced, sampled.balanced_samples
    return float(np.nanmean(values[columns])), np.nanmean(samples[:, columns], axis=1)


def _require_bool(values: np.ndarray, n: int, name: str) -> None:
    if values.dtype != bool or values.shape != (n, len(ATTRIBUTES)):
        raise ValueError(
            f"the {name} attribute values are {values.dtype} {values.shape}, expected bool "
            f"{(n, len(ATTRIBUTES))}, one row a caption: of logits pass logits > 0"
        )


def table_lines(report: AttributeReport) -> list[str]:
    """The report as lines of text: attributes that were asked for, the most often first."""
    head = f"{'attribute':22s}{'n':>5s}{'hit':>7s}{'of real':>9s}{'n not':>7s}{'rejected':>10s}"
    lines = [head + f"{'balanced':>10s}{'real':>8s}{'decoded':>9s}"]
    for row in sorted(report.rows, key=lambda row: -row.generated.asked_for):
        if row.generated.asked_for + row.generated.asked_against == 0:
            continue
        real, decoded = (
            _cell(rates and rates.balanced_accuracy) for rates in (row.real, row.reconstructed)
        )
        lines.append(
            f"{row.name:22s}{row.generated.asked_for:5d}{_cell(row.generated.hit_rate):>7s}"
            f"{_cell(row.relative_hit_rate):>9s}{row.generated.asked_against:7d}"
            f"{_cell(row.generated.rejection_rate):>10s}"
            f"{_cell(row.generated.balanced_accuracy):>10s}{real:>8s}{decoded:>9s}"
            f"{'' if row.reliable else '  not a judge of this'}"
        )
    for name, summary in (("balanced accuracy", report.headline), ("hit rate", report.hit_rate)):
        if summary.generated:
            lines += _summary_lines(name, summary)
    return lines


def _summary_lines(name: str, summary: Summary) -> list[str]:
    of = f"mean {name} over {len(summary.attributes)} reliable attributes"
    parts = {
        "generated": summary.generated,
        "captions of others": summary.shuffled,
        "real faces, same questions": summary.real,
        "generated / real": summary.relative,
    }
    return [
        f"{of}, {part}: {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for part, e in parts.items() if e
    ]


def _cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.2f}"
