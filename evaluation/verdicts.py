"""What the numbers say, in a sentence a question, by rules that are written here and nowhere else.

Numbers come as `metrics.json` holds them. A difference counts where its interval leaves out zero.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import hypot
from typing import Any

from evaluation.report import FLOOR, GENERATED

Number = Mapping[str, float]  # an `Estimate` as JSON holds it
VARIETY = ("recall", "coverage", "clipped_coverage")


@dataclass(frozen=True)
class Verdict:
    """The answer to one question; `good` is None where it is neither."""

    question: str
    answer: str
    good: bool | None


def verdicts(metrics: Mapping[str, Any]) -> list[Verdict]:
    """Every answer that the numbers allow."""
    found: list[Verdict] = []
    for name, comparison in metrics.get("distribution", {}).items():
        found += _distance(name, comparison["sets"])
        found += _variety(name, comparison["sets"])
    for name, score in metrics.get("clip_score", {}).items():
        found.append(_words(f"Does it fit its words, by {name}?", score["gap"], "other captions"))
    found += _attributes(metrics.get("attribute_consistency"))
    found += _composition(metrics.get("composition"))
    for name, report in metrics.get("copying", {}).items():
        found += _copying(name, report)
    found += _loss(metrics.get("memorization_by_loss"))
    return found


def verdict_lines(found: list[Verdict]) -> list[str]:
    """Each verdict as a line."""
    marks = {True: "+", False: "!", None: "-"}
    return [f"{marks[verdict.good]} {verdict.question} {verdict.answer}" for verdict in found]


def _distance(space: str, sets: Mapping[str, Any]) -> Iterator[Verdict]:
    distance = next(iter(sets[GENERATED]))
    own, question = sets[GENERATED][distance], f"Is it as close as real faces, in {space}?"
    if FLOOR not in sets:
        yield Verdict(question, f"cannot be told: {distance} {own['value']:.4g}, no floor", None)
        return
    floor = sets[FLOOR][distance]
    times = f"{distance} {own['value']:.4g}, of held-out faces {floor['value']:.4g}"
    if _is_above(own, floor):
        yield Verdict(question, f"no: {times}", False)
    elif _is_above(floor, own):
        shared = "yes, closer than held-out faces are; it may hold faces of the reference"
        yield Verdict(question, f"{shared}; {times}", None)
    else:
        yield Verdict(question, f"yes, as far as {own['n']} pictures tell: {times}", True)


def _variety(space: str, sets: Mapping[str, Any]) -> Iterator[Verdict]:
    if FLOOR not in sets:
        return
    own, floor = sets[GENERATED], sets[FLOOR]
    less = [name for name in VARIETY if name in own and _is_above(floor[name], own[name])]
    pairs = [f"{name} {own[name]['value']:.2f} of {floor[name]['value']:.2f}" for name in less]
    answer = f"no: {', '.join(pairs)}" if less else "yes"
    yield Verdict(f"Is it as varied as real faces, in {space}?", answer, not less)


def _words(question: str, gap: Number, others: str) -> Verdict:
    answer = f"{gap['value']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}] over {others}"
    if gap["low"] > 0:
        return Verdict(question, f"yes: {answer}", True)
    return Verdict(question, f"no better than the captions of others: {answer}", False)


def _attributes(report: Mapping[str, Any] | None) -> Iterator[Verdict]:
    for rate in ("headline", "hit_rate"):
        summary = (report or {}).get(rate)
        if summary and summary["generated"]:
            own, shuffled = summary["generated"], summary["shuffled"]
            values = f"{own['value']:.2f}, with the captions of others {shuffled['value']:.2f}"
            real = summary["real"]
            values += f", real faces {real['value']:.2f}" if real else ""
            is_shown = _is_above(own, shuffled)
            answer = f"yes: {values}" if is_shown else f"no better than chance: {values}"
            yield Verdict("Does it show what was asked?", answer, is_shown)
            return


def _composition(shares: list[Mapping[str, Any]] | None) -> Iterator[Verdict]:
    if shares is None:
        return
    other = [
        f"{share['name']} {share['generated']['value']:.0%} of pictures, "
        f"{share['real']['value']:.0%} of faces"
        for share in shares
        if share["differs"]
    ]
    answer = f"no: {'; '.join(other)}" if other else "yes"
    yield Verdict("Are they the same kinds of faces?", answer, not other)


def _copying(space: str, report: Mapping[str, Any]) -> Iterator[Verdict]:
    copied, near = report["copied"]["generated"], report["near_identical"]["generated"]
    closer = len(report["closer_than_control"])
    values = f"{copied['value']:.1%} close to training faces alone, {near['value']:.1%} nearly "
    values += f"identical, {closer} closer than any held-out face"
    answer = f"yes: {values}" if report["copies"] else f"no: {values}"
    yield Verdict(f"Is it copied, in {space}?", answer, not report["copies"])
    distinct = report["distinctness"]
    values = f"{distinct['twins']['value']:.1%} have a twin, {distinct['repeats']} repeat another"
    answer = f"yes: {values}" if distinct["repeated"] else f"no: {values}"
    yield Verdict(f"Does it repeat itself, in {space}?", answer, not distinct["repeated"])


def _loss(gap: Mapping[str, Any] | None) -> Iterator[Verdict]:
    if gap is None:
        return
    apart = gap["told_apart"]
    values = (
        f"told apart in {apart['value']:.0%} of pairs [{apart['low']:.0%}, {apart['high']:.0%}]"
    )
    answer = f"yes: {values}" if gap["memorized"] else f"no: {values}"
    yield Verdict("Does its loss know the training faces?", answer, not gap["memorized"])


def _is_above(a: Number, b: Number) -> bool:
    """Whether a - b is surely above 0, from the intervals of two independent numbers."""
    reach = hypot(a["value"] - a["low"], b["high"] - b["value"])
    return a["value"] - b["value"] > reach
