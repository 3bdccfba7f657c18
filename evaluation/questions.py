"""The questions of an evaluation, in order: each is one file, and its answer one table."""

import shutil
from collections.abc import Callable

import matplotlib.pyplot as plt

from evaluation import clip_score, consistency, copies, distance, figures, sweep, variety
from evaluation.session import METRICS, Evaluation
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
    """Draw the figures of what was measured, write everything, and say where.

    The newest whole table of a run stands in the run's own folder too, where it is easily found.
    """
    asked = {each.question for each in evaluation.table}
    drawn = {"pictures": figures.show_sets(evaluation)}
    for name, questions in (("distance_and_recall", LEADING), ("sweep", sweep.PAIR)):
        if asked & set(questions):
            drawn[name] = plot(evaluation.table, questions)
    if evaluation.matches is not None:
        drawn["closest"] = figures.show_closest(evaluation)
    folder = evaluation.save(drawn)
    if evaluation.model and any(not question.startswith("sweep") for question in asked):
        shutil.copy(folder / METRICS, evaluation.folder)
    for figure in drawn.values():
        plt.close(figure)
    return f"{len(evaluation.table)} numbers in {folder}"
