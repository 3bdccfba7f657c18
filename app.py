"""A web page to ask for faces: `make app`, or `python app.py --preset demo`.

Serves the newest checkpoint of a run on this machine only; nothing is shared or sent anywhere. What
a picture was made with is written into its PNG.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import gradio as gr
import torch
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms.v2 import functional as transforms

from config import SamplingConfig, get_config
from custom_datasets.captions import join_words
from diffusion.sampling import SAMPLERS
from inference.text_to_face import TextToFace
from models.device import freed_memory_kept
from models.vae_wrapper import VAEWrapper

MOST_PICTURES, MOST_STEPS, MOST_LETTERS = 8, 100, 300
PREVIEWS = 5  # pictures of the latents on their way, beside the last
HAIR = ("black hair", "blond hair", "brown hair", "gray hair", "bangs", "a beard", "a mustache")
WORN = ("eyeglasses", "a hat", "earrings", "a necklace", "a necktie")
# System fonts: the page must work, and stay silent, without a network.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])


@dataclass(frozen=True)
class Wish:
    """What the page asks for."""

    prompt: str
    negative_prompt: str
    guidance_scale: float
    steps: int
    sampler: str
    seed: int
    count: int


def write_prompt(who: str, age: str, has: list[str], wears: list[str], mouth: str) -> str:
    """A sentence in the grammar of the training captions, from the switches of the page.

    >>> write_prompt("man", "older", ["gray hair"], ["eyeglasses"], "smiling")
    'A photo of an older man with gray hair, wearing eyeglasses, smiling'
    """
    words = f"{age} {who}".removeprefix("any age ")
    subject = f"A photo of {'an' if words[0] in 'aeiou' else 'a'} {words}"
    with_what = f" with {join_words(has)}" if has else ""
    actions = [f"wearing {join_words(wears)}"] if wears else []
    actions += [] if mouth == "either" else [mouth]
    return ", ".join([subject + with_what, *actions])


def save_picture(picture: torch.Tensor, wish: Wish, seed: int, folder: Path, model: str) -> str:
    """Write a picture (3, H, W) in [0, 1] as PNG with what made it; returns the path."""
    facts = PngInfo()
    facts.add_text("parameters", json.dumps(asdict(wish) | {"seed": seed, "model": model}))
    path = folder / f"face_{seed}.png"
    transforms.to_pil_image(picture).save(path, pnginfo=facts)
    return str(path)


def denoise(
    model: TextToFace, wish: Wish, preview: VAEWrapper | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (step, pictures (B, 3, H, W)) a few times on the way, then at the end.

    Args:
        preview: a tiny autoencoder of the same latents that decodes what is on its way; the last
            pictures are always the model's own.
    """
    seeds = range(wish.seed, wish.seed + wish.count)
    prompts = [wish.prompt] * wish.count
    predict = model.predictor(prompts, wish.guidance_scale, wish.negative_prompt)
    settings = SamplingConfig(wish.sampler, wish.steps)
    every = max(1, wish.steps // PREVIEWS)
    with freed_memory_kept(model.device):
        for step, latents in enumerate(model.trajectory(predict, seeds, settings)):
            if step == wish.steps:
                yield step, model.decode(latents)
            elif step % every == 0:
                yield step, preview.decode(latents).cpu() if preview else model.decode(latents)


def draw(
    model: TextToFace, wish: Wish, folder: Path, preview: VAEWrapper | None = None
) -> Iterator[tuple[list[str], str]]:
    """Yield the pictures' files, in the folder, and a line of progress as the wish is denoised.

    Raises:
        gr.Error: the wish cannot be met (too long a prompt, a number of steps that the sampler does
            not take); says why.
    """
    try:
        for step, pictures in denoise(model, wish, preview):
            part = folder / str(step)
            part.mkdir(parents=True)
            files = [
                save_picture(picture, wish, wish.seed + i, part, model.config.name)
                for i, picture in enumerate(pictures)
            ]
            yield files, f"step {step} of {wish.steps}" if step < wish.steps else "done"
    except ValueError as error:
        raise gr.Error(str(error)) from error


def open_preview(name: str, model: TextToFace, device: torch.device | str) -> VAEWrapper:
    """A tiny autoencoder, such as `madebyollin/taesd`, for pictures on their way.

    Raises:
        FileNotFoundError: it cannot be had.
        ValueError: its latents have another shape than the model's.
    """
    preview = VAEWrapper.from_pretrained(name).to(device)
    have = (preview.latent_channels, preview.downsampling)
    want = (model.vae.latent_channels, model.vae.downsampling)
    if have != want:
        raise ValueError(
            f"{name} has latents of {have[0]} channels over {have[1]} pixels, those of preset "
            f"{model.config.name} have {want[0]} over {want[1]}"
        )
    return preview


def build_page(model: TextToFace, preview: VAEWrapper | None = None) -> gr.Blocks:
    """The page over one model; every event is a function above."""
    defaults = model.config.sampling
    page = gr.Blocks(title="Faces from words", analytics_enabled=False, delete_cache=(3600, 3600))
    with page:
        gr.Markdown(f"# Faces from words\nPreset `{model.config.name}`. The people do not exist.")
        with gr.Row():
            with gr.Column(min_width=320):
                prompt = gr.Textbox(
                    defaults.prompts[0],
                    label="Prompt",
                    max_length=MOST_LETTERS,
                    elem_id="prompt",
                )
                _switches(prompt)
                other = gr.Textbox(
                    label="Compare with (the same seeds under another prompt)",
                    max_length=MOST_LETTERS,
                    elem_id="other",
                )
                settings = _settings(defaults)
                button = gr.Button("Draw", variant="primary", elem_id="draw")
            with gr.Column(min_width=320):
                status = gr.Textbox(label="Progress", interactive=False, elem_id="status")
                shown = _gallery("Pictures", "pictures")
                compared = _gallery("Under the other prompt", "compared")
        drawer = partial(draw, model, preview=preview)
        _connect(drawer, button, prompt, other, settings, [shown, compared, status])
    page.queue(max_size=16, default_concurrency_limit=2)
    return page


def _gallery(label: str, name: str) -> gr.Gallery:
    gr.Markdown(f"**{label}**")  # a label of the gallery's own would lie over the first picture
    return gr.Gallery(
        show_label=False, columns=2, height="auto", format="png", elem_id=name, object_fit="contain"
    )


def _switches(prompt: gr.Textbox) -> None:
    """Choices that write the prompt."""
    with gr.Accordion("Choose attributes, and the prompt is written", open=False):
        parts = [
            gr.Radio(["person", "woman", "man"], value="person", label="Who"),
            gr.Radio(["any age", "young", "older"], value="any age", label="Age"),
            gr.CheckboxGroup(HAIR, label="With"),
            gr.CheckboxGroup(WORN, label="Wearing"),
            gr.Radio(["either", "smiling", "not smiling"], value="either", label="Mouth"),
        ]
    for part in parts:
        part.change(write_prompt, parts, prompt, queue=False)


def _settings(defaults: SamplingConfig) -> list[gr.components.Component]:
    """Everything of a `Wish` but its prompt, in the order of its fields."""
    with gr.Accordion("Settings", open=False):
        return [
            gr.Textbox("", label="Negative prompt", max_length=MOST_LETTERS),
            gr.Slider(0, 10, value=defaults.guidance_scale, step=0.1, label="Guidance"),
            gr.Slider(1, MOST_STEPS, value=defaults.steps, step=1, label="Steps"),
            gr.Dropdown(list(SAMPLERS), value=defaults.sampler, label="Sampler"),
            gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31),
            gr.Slider(1, MOST_PICTURES, value=4, step=1, label="Pictures"),
        ]


def _connect(
    drawer: Callable[[Wish, Path], Iterator[tuple[list[str], str]]],
    button: gr.Button,
    prompt: gr.Textbox,
    other: gr.Textbox,
    settings: list[gr.components.Component],
    outputs: list[gr.components.Component],
) -> None:
    def answer(
        text: str, second: str, negative: str, scale: float, steps: int, sampler: str, seed: int,
        count: int,
    ) -> Iterator[tuple[list[str], list[str], str]]:  # fmt: skip
        wish = Wish(text, negative, scale, int(steps), sampler, int(seed or 0), int(count))
        first: list[str] = []
        with tempfile.TemporaryDirectory(prefix="faces_") as name:  # the page keeps its own copies
            folder = Path(name)
            for first, line in drawer(wish, folder / "first"):
                yield first, [], line
            if second.strip():
                for files, line in drawer(replace(wish, prompt=second), folder / "second"):
                    yield first, files, line if line == "done" else f"other prompt, {line}"

    events = [button.click, prompt.submit, other.submit]
    gr.on(events, answer, [prompt, other, *settings], outputs, api_name="draw")


def main() -> None:
    """Serve the newest run of a preset on 127.0.0.1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default=None)
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--preview", help="hub id or folder of a tiny autoencoder for previews")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = TextToFace.from_run(get_config(arguments.preset).run_folder, device)
    preview = open_preview(arguments.preview, model, device) if arguments.preview else None
    build_page(model, preview).launch(
        server_name="127.0.0.1", server_port=arguments.port, share=False, theme=THEME
    )


if __name__ == "__main__":
    main()
