"""The pictures of an evaluation; its numbers are drawn by `table.plot`."""

import torch
from matplotlib.figure import Figure

from custom_datasets.celeba_hq_dataset import to_model_range
from evaluation.session import Evaluation
from plotting import show_table

COLUMNS = 10  # pictures side by side


def show_sets(evaluation: Evaluation) -> Figure:
    """Pictures below the real faces whose captions they were asked for."""
    columns = min(COLUMNS, len(evaluation.test), len(evaluation.pictures))
    faces = range(columns) if evaluation.described is None else evaluation.described[:columns]
    real = [evaluation.test[int(face)] for face in faces]
    rows = {"real": real}
    if (model := evaluation.model) and evaluation.can_encode:
        latents = model.encode(to_model_range(torch.stack(real)).to(model.device))
        rows["through the autoencoder"] = list(model.decode(latents))
    rows["generated"] = [evaluation.pictures[i] for i in range(columns)]
    return show_table(list(rows.values()), list(rows), [""] * columns)


def show_closest(evaluation: Evaluation) -> Figure:
    """The pictures that are most like a training face, above that face."""
    match, train = evaluation.matches, evaluation.train
    closest = match.correlation.argsort(descending=True)[:COLUMNS].tolist()
    faces = [train[int(match.face[i])] for i in closest]
    faces = [f.flip(-1) if match.is_mirrored[i] else f for i, f in zip(closest, faces, strict=True)]
    rows = [[evaluation.pictures[i] for i in closest], faces]
    correlations = [f"{match.correlation[i]:.2f}" for i in closest]
    return show_table(rows, ["generated", "nearest training face"], correlations)
