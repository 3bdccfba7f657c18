"""The web page that `app.py` serves: prompts and settings in, pictures out as they form.

Each PNG stores the settings it was made with.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from config import SamplingConfig
from diffusion.sampling import MAX_SEED, SAMPLERS, build_sampler, spread_timesteps
from inference.picture_sets import facts_of
from inference.text_to_face import TextToFace
from models.device import freed_memory_kept

USUAL_PICTURES = 4
MAX_PICTURES, MAX_STEPS, MAX_GUIDANCE = 8, 100, 10.0
PREVIEWS = 5  # intermediate pictures, in addition to the last
# System fonts: the page must work, and stay silent, without a network.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def build_page(model: TextToFace) -> gr.Blocks:
    """The page over one model."""
    usual = model.config.sampling

    def answer(
        prompt: str | None,
        other: str | None,
        negative: str | None,
        scale: float | None,
        steps: int | None,
        sampler: str | None,
        seed: int | None,
        count: int | None,
    ) -> Iterator[list[Any]]:
        """Both galleries and the line of progress; a cleared field, None, takes its default."""
        prompt, other, negative = prompt or "", (other or "").strip(), negative or ""
        seeds = range(seed or 0, (seed or 0) + (count or USUAL_PICTURES))
        galleries: list[list[Image]] = [[], []]
        try:
            given = {"guidance_scale": scale, "steps": steps, "sampler": sampler}
            given = {name: value for name, value in given.items() if value is not None}
            how = model.settings(**given)
            yield [*galleries, "begins"]  # without the pictures before
            for place, text in enumerate([prompt, other] if other else [prompt]):
                for pictures, line in pictures_of(model, text, seeds, how, negative):
                    changed: list[Any] = [gr.skip(), gr.skip()]
                    if pictures:
                        galleries[place] = changed[place] = pictures
                    yield [*changed, line]
            unknown = ", ".join(model.unknown_words(prompt, other, negative))
            hint = f"; no caption of CelebA's attributes has: {unknown}" if unknown else ""
            yield [*galleries, f"done{hint}"]
        except (ValueError, FloatingPointError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title="Faces from words", analytics_enabled=False) as page:
        gr.Markdown(f"# Faces from words\nPreset `{model.config.name}`. The people do not exist.")
        with gr.Row():
            with gr.Column(min_width=320):
                prompt = gr.Textbox(usual.prompts[0], label="Prompt")
                gr.Examples(list(usual.prompts), prompt)
                label = "Compare with (the same seeds under another prompt)"
                other = gr.Textbox(label=label)
                settings = _settings(usual)
                with gr.Row():
                    sample = gr.Button("Sample", variant="primary")
                    stop = gr.Button("Stop")
            with gr.Column(min_width=320):
                status = gr.Textbox(label="Progress", interactive=False)
                shown = _gallery("Pictures")
                compared = _gallery("Under the other prompt")
        sampling = gr.on(
            [sample.click, prompt.submit, other.submit],
            answer,
            [prompt, other, *settings],
            [shown, compared, status],
            api_name="sample",
            # Two keep a CPU busy while one of them writes files; on a GPU they share its memory.
            concurrency_limit=2 if model.device.type == "cpu" else 1,
        )
        stop.click(lambda: "stopped", outputs=status, cancels=[sampling], queue=False)
    return page.queue(max_size=16)


def pictures_of(
    model: TextToFace,
    prompt: str,
    seeds: Sequence[int],
    how: SamplingConfig,
    negative_prompt: str = "",
) -> Iterator[tuple[list[Image], str]]:
    """A line of progress after every step, where the Stop button ends it, and a few times the
    pictures.

    Raises:
        ValueError: too long a prompt, or a number of steps that the sampler does not take.
    """
    model.require_fit([prompt, negative_prompt], how)
    facts = [facts_of(model, prompt, seed, how, negative_prompt) for seed in seeds]
    predict = model.predictor([prompt] * len(seeds), how, negative_prompt)
    last = len(spread_timesteps(build_sampler(how.sampler, model.objective), how.steps))
    every = max(1, last // PREVIEWS)
    with freed_memory_kept(model.device):
        for step, latents in enumerate(model.trajectory(predict, seeds, how.sampler, how.steps)):
            shown = []
            if step % every == 0 or step == last:
                unfinished = {"stopped_after_step": step} if step < last else {}
                pairs = zip(model.decode(latents), facts, strict=True)
                shown = [_with_facts(picture, told | unfinished) for picture, told in pairs]
            yield shown, f"step {step} of {last}"


def _with_facts(picture: Tensor, facts: dict[str, object]) -> Image:
    image = to_pil_image(picture)
    image.info["parameters"] = json.dumps(facts)  # gradio writes it into the PNG
    return image


def _gallery(label: str) -> gr.Gallery:
    gr.Markdown(f"**{label}**")  # a label of the gallery's own would cover the first picture
    return gr.Gallery(
        show_label=False, columns=2, height="auto", format="png", object_fit="contain"
    )


def _settings(usual: SamplingConfig) -> list[gr.components.Component]:
    """What gradio holds within these bounds for every client, with a browser or without."""
    scale, steps = usual.guidance_scale, usual.steps
    whole = {"precision": 0, "step": 1}
    with gr.Accordion("Settings", open=False):
        return [
            gr.Textbox("", label="Negative prompt"),
            gr.Number(scale, minimum=0, maximum=max(MAX_GUIDANCE, scale), label="Guidance"),
            gr.Number(steps, minimum=1, maximum=max(MAX_STEPS, steps), label="Steps", **whole),
            gr.Dropdown(list(SAMPLERS), value=usual.sampler, label="Sampler"),
            gr.Number(0, minimum=0, maximum=MAX_SEED - MAX_PICTURES, label="Seed", **whole),
            gr.Number(USUAL_PICTURES, minimum=1, maximum=MAX_PICTURES, label="Pictures", **whole),
        ]
