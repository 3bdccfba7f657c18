"""`report.html`: everything that was measured of one set of pictures, on one page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.page import Raw, cell, figure, heading, page, paragraph, table
from evaluation.verdicts import Verdict, verdicts
from files import write_text

CLASSES = {True: "good", False: "bad", None: ""}
Metrics = Mapping[str, Any]  # or a section of it, as `metrics.json` holds them


def write_page(path: Path, metrics: Metrics, figures: Mapping[str, Path]) -> None:
    """Write the page of a run.

    Args:
        metrics: as `metrics.json` holds them.
        figures: title -> PNG file.
    """
    protocol = metrics["protocol"]
    parts = [
        paragraph(f"{protocol['model']}. Behind each number stands its 95% interval."),
        heading("In short"),
        verdict_table(verdicts(metrics)),
        *(figure(figures[name], name) for name in figures if name == "Pictures"),
    ]
    for question, section in SECTIONS.items():
        found = list(section(metrics, figures))
        parts += [heading(question), *found] if found else []
    parts += [heading("Not measured"), table(["number", "reason"], _pairs(metrics["not_measured"]))]
    parts += [heading("Protocol"), table([], _pairs(protocol))]
    write_text(path, page(f"Evaluation of {protocol['preset']}", parts))


def verdict_table(found: Sequence[Verdict]) -> str:
    """Questions with their answers, coloured by what they mean."""
    rows = [
        [each.question, Raw(f'<span class="{CLASSES[each.good]}">{cell(each.answer)}</span>')]
        for each in found
    ]
    return table([], rows)


def _distribution(metrics: Metrics, figures: Mapping[str, Path]) -> Iterator[str]:
    for name, comparison in metrics.get("distribution", {}).items():
        sets = comparison["sets"]
        yield heading(f"{name}: {comparison['network']}", 3)
        yield paragraph(
            f"Sets of {comparison['n']} images against {comparison['n_reference']} real faces, in "
            f"{comparison['dimensions']} dimensions; images are resized {comparison['resize']}. "
            f"{comparison['method']}. An interval tells {comparison['interval']}. "
            f"{comparison['note']}"
        )
        numbers = list(next(iter(sets.values())))
        rows = [[number, *(row.get(number) for row in sets.values())] for number in numbers]
        yield table(["", *sets], rows)
        limit = comparison["extrapolated"]
        if limit:
            yield table(
                ["", "of infinitely many pictures", "pictures", "distance at that number", ""],
                [[numbers[0], limit, limit["sizes"], _few(limit["distances"]), limit["note"]]],
            )
    yield from _figures(figures, "Distances")


def _clip_score(metrics: Metrics, figures: Mapping[str, Path]) -> Iterator[str]:
    scores = metrics.get("clip_score", {})
    names = {
        "matched": "own captions",
        "shuffled": "captions of others",
        "gap": "gap",
        "real": "real faces",
        "real_shuffled": "real faces, captions of others",
        "shortfall": "real - generated",
    }
    if scores:
        rows = [[clip, *(score.get(name) for name in names)] for clip, score in scores.items()]
        yield table(["CLIP", *names.values()], rows)


def _attributes(metrics: Metrics, figures: Mapping[str, Path]) -> Iterator[str]:
    report = metrics.get("attribute_consistency")
    if not report:
        return
    sets = ("generated", "shuffled", "real", "reconstructed", "relative")
    head = ["generated", "captions of others", "real faces", "through the autoencoder"]
    summaries = {"balanced accuracy": report["headline"], "hit rate": report["hit_rate"]}
    yield table(
        ["mean over the attributes that may judge", *head, "generated / real", "attributes"],
        [
            [name, *(summary[each] for each in sets), len(summary["attributes"])]
            for name, summary in summaries.items()
        ],
    )
    asked = [row for row in report["rows"] if row["generated"]["asked_for"]]
    columns = ["attribute", "asked for", "shown", "/ real", "asked against", "not shown"]
    yield table(
        [*columns, "balanced accuracy", "of real faces", "may judge"],
        [
            [
                row["name"],
                row["generated"]["asked_for"],
                row["generated"]["hit_rate"],
                row["relative_hit_rate"],
                row["generated"]["asked_against"],
                row["generated"]["rejection_rate"],
                row["generated"]["balanced_accuracy"],
                row["real"] and row["real"]["balanced_accuracy"],
                "yes" if row["reliable"] else "no",
            ]
            for row in sorted(asked, key=lambda row: -row["generated"]["asked_for"])
        ],
    )


def _composition(metrics: Metrics, figures: Mapping[str, Path]) -> Iterator[str]:
    shares = metrics.get("composition")
    if shares:
        rows = [[s[key] for key in ("name", "generated", "real", "difference")] for s in shares]
        yield table(["attribute", "of pictures", "of real faces", "difference"], rows)


def _copying(metrics: Metrics, figures: Mapping[str, Path]) -> Iterator[str]:
    for name, found in metrics.get("copying", {}).items():
        yield heading(name, 3)
        distinct = found["distinctness"]
        rows = [
            ["median distance to a training face", *_both(found, "median")],
            ["1st percentile of it", *_both(found, "low")],
            ["close to training faces alone", *_shares(found["copied"])],
            ["nearly identical to one", *_shares(found["near_identical"])],
            ["closer than any held-out face", len(found["closer_than_control"]), 0],
            ["with a twin in the set", distinct["twins"], "1% by definition"],
            ["that repeat another", distinct["repeats"], distinct["control_repeats"]],
        ]
        yield table(["", "generated", "held-out faces"], rows)
        yield from _figures(figures, f"Closest, in {name}")


def _loss(metrics: Metrics, figures: Mapping[str, Path]) -> Iterator[str]:
    gap = metrics.get("memorization_by_loss")
    if gap:
        columns = ("timestep", "train", "heldout", "ratio", "told_apart", "control")
        rows = [[level[name] for name in columns] for level in gap["levels"]]
        rows.append(["all", None, None, None, gap["told_apart"], gap["control"]])
        yield table(["t", "train", "held out", "ratio", "told apart", "two held-out halves"], rows)


def _sweep(metrics: Metrics, figures: Mapping[str, Path]) -> Iterator[str]:
    swept = metrics.get("sweep")
    if swept:
        yield paragraph(
            f"{swept['n']} pictures a setting, from the same captions and seeds; distances in "
            f"{swept['features']}. Changes are to the first setting, paired."
        )
        numbers = ("distance", "consistency", "distance_change", "consistency_change")
        columns = ("guidance_scale", "steps", *numbers)
        rows = [[row[name] for name in columns] for row in swept["rows"]]
        head = ["guidance", "steps", "distance", "shown", "change of distance", "change of shown"]
        yield table(head, rows)
        yield from _figures(figures, "Guidance and steps")


SECTIONS = {
    "How close is the set?": _distribution,
    "Does the picture fit the words?": _clip_score,
    "Does it show what was asked?": _attributes,
    "Are they the same kinds of faces?": _composition,
    "Is it copied?": _copying,
    "Does the loss know the training faces?": _loss,
    "What do guidance and steps do?": _sweep,
}


def _figures(figures: Mapping[str, Path], title: str) -> Iterator[str]:
    if title in figures:
        yield figure(figures[title], title)


def _both(found: Metrics, name: str) -> tuple[float, float]:
    return found["generated"][name], found["control"][name]


def _shares(excess: Metrics) -> tuple[Metrics, Metrics]:
    return excess["generated"], excess["control"]


def _few(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)


def _pairs(values: Mapping[str, Any]) -> list[list[object]]:
    return [[name, value] for name, value in values.items()]
