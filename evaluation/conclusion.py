"""The end of an evaluation: what its numbers say, and the page that shows them."""

from pathlib import Path

from config import ROOT
from evaluation.comparison import Difference, compare
from evaluation.comparison_page import write_comparison_page
from evaluation.figures import save_figures, show_pairs
from evaluation.results import plain
from evaluation.run_page import write_page
from evaluation.samples import read_samples
from evaluation.session import Evaluation
from evaluation.verdicts import verdict_lines, verdicts
from files import write_json


def conclude(evaluation: Evaluation) -> list[str]:
    """Add the verdicts to the numbers, write `report.html`, and tell both in lines."""
    results = evaluation.results
    if not results.is_main:
        return []
    found = verdicts(results.read())
    results.add("verdicts", "", found)
    results.finish()
    page = evaluation.folder / "report.html"
    write_page(page, results.read(), save_figures(evaluation))
    return [*verdict_lines(found), "", str(results.path), str(page)]


def conclude_comparison(*names: str) -> tuple[list[Difference], Path]:
    """Compare two evaluations and write the page of their differences.

    Args:
        names: of two runs, whose numbers are in `outputs/`, or two folders.

    Raises:
        FileNotFoundError: nothing was measured there.
        ValueError: one and the same twice.
    """
    if names[0] == names[1]:
        raise ValueError(f"--compare {names[0]} {names[1]}: two different evaluations are needed")
    folders = [Path(name) if Path(name).is_dir() else ROOT / "outputs" / name for name in names]
    sides = {name: read_samples(folder) for name, folder in zip(names, folders, strict=True)}
    differences = compare(*sides.values())
    out = ROOT / "outputs" / "compared" / "-".join(folder.resolve().name for folder in folders)
    write_json(out / "comparison.json", plain(differences))
    drawn = show_pairs(sides)
    if drawn:
        drawn.savefig(out / "pictures.png", dpi=110)
    page = out / "report.html"
    write_comparison_page(page, sides, differences, out / "pictures.png" if drawn else None)
    return differences, page
