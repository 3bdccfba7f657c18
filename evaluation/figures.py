"""The pictures of an evaluation; its numbers are drawn by `table.plot`."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from custom_datasets.celeba_hq_dataset import to_model_range
from evaluation.session import Evaluation
from evaluation.table import Row, Table
from plotting import show_table

COLUMNS = 10  # pictures side by side


def show_sets(evaluation: Evaluation, columns: int = COLUMNS) -> Figure:
    """Pictures below the real faces whose captions they were asked for."""
    columns = min(columns, len(evaluation.test), len(evaluation.pictures))
    faces = range(columns) if evaluation.described is None else evaluation.described[:columns]
    real = [evaluation.test[int(face)] for face in faces]
    rows = {"real": real}
    if model := evaluation.model:
        latents = model.encode(to_model_range(torch.stack(real)).to(model.device))
        rows["through the autoencoder"] = list(model.decode(latents))
    rows["generated"] = [evaluation.pictures[i] for i in range(columns)]
    return show_table(list(rows.values()), list(rows), [""] * columns)


def show_closest(evaluation: Evaluation, columns: int = COLUMNS) -> Figure:
    """The pictures that are most like a training face, above that face."""
    match, train = evaluation.matches, evaluation.train
    closest = match.correlation.argsort(descending=True)[:columns].tolist()
    faces = [train[int(match.face[i])] for i in closest]
    faces = [f.flip(-1) if match.is_mirrored[i] else f for i, f in zip(closest, faces, strict=True)]
    rows = [[evaluation.pictures[i] for i in closest], faces]
    correlations = [f"{match.correlation[i]:.2f}" for i in closest]
    return show_table(rows, ["generated", "nearest training face"], correlations)


def plot_sweep(table: Table) -> Figure:
    """The pair at every setting: better is down (distance) and to the right (recall)."""
    figure, axis = plt.subplots(figsize=(6, 3.8))
    found: Mapping[str, dict[str, Row]] = {
        question: {each.set: each for each in table if each.question == question}
        for question in ("sweep_recall", "sweep_distance")
    }
    for name, x in found["sweep_recall"].items():
        y = found["sweep_distance"][name]
        across, along = ([[e.value - e.low], [e.high - e.value]] for e in (x, y))
        axis.errorbar(x.value, y.value, xerr=across, yerr=along, fmt="o", lw=0.7, label=name)
    axis.set(xlabel="recall", ylabel="Fréchet distance")
    axis.legend(fontsize=7)
    figure.tight_layout()
    return figure


def plot_reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = 10) -> Figure:
    """How often what is given probability p is true, over all attributes; (N, 40) each."""
    figure, axis = plt.subplots(figsize=(3.2, 3.2))
    bin_of = np.clip((probabilities * bins).astype(int), 0, bins - 1)
    filled = [b for b in range(bins) if (bin_of == b).any()]
    said = [probabilities[bin_of == b].mean() for b in filled]
    true = [truth[bin_of == b].mean() for b in filled]
    axis.plot([0, 1], [0, 1], "k:", linewidth=1)
    axis.plot(said, true, "o-")
    axis.set(xlabel="probability given", ylabel="share that is true", title="calibration")
    figure.tight_layout()
    return figure
