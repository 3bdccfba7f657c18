"""The figures of an evaluation: pictures next to real faces, and numbers with their intervals.

Numbers come as `metrics.json` holds them, so that a figure can be drawn again without measuring.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from evaluation.comparison import pairs
from evaluation.samples import Samples
from evaluation.session import Evaluation
from plotting import show_table

COLUMNS = 10  # pictures side by side


def show_sets(evaluation: Evaluation, columns: int = COLUMNS) -> Figure:
    """Pictures below the real faces whose captions they were asked for, where that is known."""
    test, pictures = evaluation.faces["test"], evaluation.pictures
    columns = min(columns, len(test), len(pictures))
    rows = {"real": test, "generated": pictures}
    if evaluation.subject.model:
        rows = {
            "real": test,
            "through the autoencoder": evaluation.reconstructed(test),
            "generated, same captions": pictures,
        }
    shown = [[images[i] for i in range(columns)] for images in rows.values()]
    return show_table(shown, list(rows), [""] * columns)


def show_pairs(sides: Mapping[str, Samples], columns: int = COLUMNS) -> Figure | None:
    """Pictures of the same captions, a row a set; None where no captions agree.

    Args:
        sides: name -> evaluation, the first and the second.
    """
    first, second = sides.values()
    places = pairs(first.captions, second.captions)
    columns = min(columns, len(places[0]))
    if columns == 0:
        return None
    rows = [
        [read_picture(samples.pictures[i]) for i in at[:columns]]
        for samples, at in zip((first, second), places, strict=True)
    ]
    return show_table(rows, list(sides), [first.captions[i] for i in places[0][:columns]])


def read_picture(path: Path) -> Tensor:
    """An image file as uint8 (3, H, W)."""
    return decode_image(str(path), ImageReadMode.RGB)


def show_closest(
    evaluation: Evaluation, found: Mapping[str, Any], columns: int = COLUMNS
) -> Figure:
    """The pictures that are nearest to a training face, above that face.

    Args:
        found: a copying report of `metrics.json`.
    """
    matches, train = found["closest"][:columns], evaluation.faces["train"]
    faces = [
        train[match["train"]].flip(-1) if match["mirrored"] else train[match["train"]]
        for match in matches
    ]
    rows = [[evaluation.pictures[match["generated"]] for match in matches], faces]
    distances = [f"{match['distance']:.3g}" for match in matches]
    return show_table(rows, ["generated", "nearest training face"], distances)


def plot_distances(distribution: Mapping[str, Any]) -> Figure:
    """The first distance of each space, of all its sets, with 95% intervals."""
    columns = len(distribution)
    figure, axes = plt.subplots(
        1, columns, figsize=(4.5 * columns, 2.1), squeeze=False, layout="constrained"
    )
    for axis, comparison in zip(axes.flat, distribution.values(), strict=True):
        names = list(comparison["sets"])
        distance = next(iter(comparison["sets"][names[0]]))
        values = [comparison["sets"][name][distance] for name in names]
        _intervals(axis, names, values)
        axis.set(xscale="log", xlabel=distance)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _intervals(axis: Axes, names: Sequence[str], values: Sequence[Mapping[str, float]]) -> None:
    """Estimates from top to bottom, each a dot with its interval."""
    places = np.arange(len(names))[::-1]
    middle = np.array([value["value"] for value in values])
    reach = np.array([[v["value"] - v["low"], v["high"] - v["value"]] for v in values]).T
    axis.errorbar(middle, places, xerr=np.maximum(reach, 0), fmt="o", elinewidth=0.8)
    axis.set_yticks(places, names, fontsize=7)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="x", alpha=0.3)
    axis.margins(y=0.15)


def plot_sweep(swept: Mapping[str, Any]) -> Figure:
    """Quality against faithfulness, one point a setting; better is down and to the right.

    Settings whose faithfulness could not be told are left out.
    """
    figure, axis = plt.subplots(figsize=(6, 3.8))
    for row in swept["rows"]:
        if row["consistency"] is None:
            continue
        x, y = row["consistency"], row["distance"]
        across = [[x["value"] - x["low"]], [x["high"] - x["value"]]]
        along = [[y["value"] - y["low"]], [y["high"] - y["value"]]]
        place = (x["value"], y["value"])
        name = f"guidance {row['guidance_scale']:g}, {row['steps']} steps"
        axis.errorbar(*place, xerr=across, yerr=along, fmt="o", elinewidth=0.7, label=name)
    axis.set(
        xlabel="share of stated attributes that are shown",
        ylabel=f"Fréchet distance in {swept['features']}",
    )
    axis.legend(fontsize=7, loc="upper left")
    figure.tight_layout()
    return figure


def plot_reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = 10) -> Figure:
    """How often what is given probability p is true, over all attributes; (N, 40) each."""
    figure, axis = plt.subplots(figsize=(3.2, 3.2))
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.digitize(probabilities, edges) - 1, 0, bins - 1)
    filled = [b for b in range(bins) if (place == b).any()]
    said = [probabilities[place == b].mean() for b in filled]
    true = [truth[place == b].mean() for b in filled]
    axis.plot([0, 1], [0, 1], "k:", linewidth=1)
    axis.plot(said, true, "o-")
    axis.set(xlabel="probability given", ylabel="share that is true", title="calibration")
    figure.tight_layout()
    return figure


def save_figures(evaluation: Evaluation) -> dict[str, Path]:
    """Draw all figures of what was measured into `figures/`: title -> PNG file."""
    values = evaluation.results.values
    drawn = {"Pictures": ("sets", show_sets(evaluation))}
    if "distribution" in values:
        drawn["Distances"] = ("distances", plot_distances(values["distribution"]))
    for number, (space, found) in enumerate(values.get("copying", {}).items(), start=1):
        drawn[f"Closest, in {space}"] = (f"closest_{number}", show_closest(evaluation, found))
    if any(row["consistency"] for row in values.get("sweep", {}).get("rows", ())):
        drawn["Guidance and steps"] = ("sweep", plot_sweep(values["sweep"]))
    paths = {}
    for title, (name, figure) in drawn.items():
        paths[title] = evaluation.folder / "figures" / f"{name}.png"
        paths[title].parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[title], dpi=110)
        plt.close(figure)
    return paths
