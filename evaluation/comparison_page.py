"""Two evaluations on one page: differences, pictures of the same captions, both protocols."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.comparison import Difference
from evaluation.page import figure, heading, page, paragraph, table
from evaluation.run_page import verdict_table
from evaluation.samples import Samples
from evaluation.verdicts import verdicts
from files import write_text


def write_comparison_page(
    path: Path,
    sides: Mapping[str, Samples],
    differences: Sequence[Difference],
    pictures: Path | None,
) -> None:
    """Write the page of two evaluations.

    Args:
        sides: name -> evaluation, the first and the second.
        differences: of all numbers that both have.
        pictures: PNG file of their pictures side by side; None where no captions agree.
    """
    first, second = sides
    head = ["number", first, second, f"{second} - {first}", "compared", "verdict"]
    rows = [
        [
            one.name,
            *(vars(estimate) for estimate in (one.first, one.second, one.change)),
            "in pairs" if one.paired else "as independent",
            one.verdict.replace("the first", first).replace("the second", second),
        ]
        for one in differences
    ]
    seeds = [samples.metrics["protocol"].get("seeds") for samples in sides.values()]
    same = "the same" if seeds[0] and seeds[0] == seeds[1] else "other"
    parts = [
        paragraph(
            "Behind each number stands its 95% interval. In pairs: of pictures of the same "
            f"captions, from {same} seeds, so that the captions' own variation is not in the "
            "difference."
        ),
        table(head, rows),
        *([figure(pictures, "The same captions")] if pictures else []),
    ]
    for name, samples in sides.items():
        parts += [heading(name), verdict_table(verdicts(samples.metrics))]
    parts += [heading("Protocols"), table(["", first, second], _protocols(sides))]
    write_text(path, page(f"{first} and {second}", parts))


def _protocols(sides: Mapping[str, Samples]) -> list[list[object]]:
    """All entries of both protocols, those that differ first."""
    first, second = (samples.metrics["protocol"] for samples in sides.values())
    names = list(dict.fromkeys([*first, *second]))
    names.sort(key=lambda name: first.get(name) == second.get(name))
    return [[name, first.get(name), second.get(name)] for name in names]
