"""The figures that notebooks share: prompts as they are, and the numbers that were logged."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from plotting import plot_losses, show_images, show_table

IMAGES = [torch.zeros(3, 8, 8)] * 2


def test_a_dollar_in_a_prompt_is_no_mathematics() -> None:
    prompt = "a $\\frac{1}{ face$"
    for figure in (
        show_images(IMAGES, [prompt] * 2, columns=2, title=prompt),
        show_table([IMAGES], [prompt], [prompt] * 2, title=prompt),
    ):
        figure.canvas.draw()
        assert figure.axes[0].title.get_text().replace("\n", " ") == prompt
        plt.close(figure)


def test_losses_show_held_out_faces_beside_training_faces() -> None:
    losses = [
        {"step": n, "loss": 1 / n, "loss_by_timestep": [0.5] * 9 + [None]} for n in range(1, 41)
    ]
    skipped = {"step": 41, "loss": None, "loss_by_timestep": [None] * 10}
    validation = [
        {"step": 10 * n, "loss": 0.5 / n, "loss_by_timestep": [0.1] * 10} for n in (1, 2, 3, 4)
    ]
    figure = plot_losses([*losses, skipped], validation)
    over_steps, by_timestep = figure.axes
    held_out = over_steps.lines[-1]
    np.testing.assert_allclose(held_out.get_xdata(), [10, 20, 30, 40])
    np.testing.assert_allclose(held_out.get_ydata(), [0.5, 0.25, 0.5 / 3, 0.125])
    np.testing.assert_allclose(by_timestep.lines[-1].get_ydata(), [0.1] * 10)
    assert [bar.get_height() for bar in by_timestep.patches] == [0.5] * 9 + [0]
