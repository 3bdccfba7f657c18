"""The questions of an evaluation, in order: each is one file, and its answer one table."""

from collections.abc import Callable

import matplotlib.pyplot as plt

from evaluation import clip_score, consistency, copies, distance, figures, sweep, variety
from evaluation.session import Evaluation
from evaluation.table import Table, plot

# The pair that leads; the rest explains it.
LEADING = ("FID", "frechet_distance", "recall")
QUESTIONS: dict[str, Callable[[Evaluation], Table]] = {
    "How far is the set from real faces?": distance.answer,
    "Does it show as many kinds of faces?": variety.answer,
    "Does the picture fit the words?": clip_score.answer,
    "Does it show what was asked?": consistency.answer,
    "Is it copied?": copies.answer,
    "What do guidance and steps do?": sweep.answer,
}


def finish(evaluation: Evaluation) -> str:
    """Draw the figures of what was measured, write everything, and say where."""
    drawn = {}
    if evaluation.is_main:
        asked = {each.question for each in evaluation.table}
        drawn["pictures"] = figures.show_sets(evaluation)
        if asked & set(LEADING):
            drawn["distance_and_recall"] = plot(evaluation.table, LEADING)
        if evaluation.matches is not None:
            drawn["closest"] = figures.show_closest(evaluation)
        if "sweep_recall" in asked:
            drawn["sweep"] = figures.plot_sweep(evaluation.table)
    folder = evaluation.save(drawn)
    for figure in drawn.values():
        plt.close(figure)
    return f"{len(evaluation.table)} numbers in {folder}"
