"""The web page that `app.py` serves: prompts and settings in, pictures out as they form.

Each PNG stores the settings it was made with.
"""

import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import gradio as gr
import torch
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms.v2 import functional as transforms

from config import Config, SamplingConfig
from custom_datasets.captions import join_words
from diffusion.sampling import SAMPLERS
from inference import arguments
from inference.text_to_face import TextToFace
from models.device import freed_memory_kept
from models.vae_wrapper import VAEWrapper

USUAL_PICTURES = 4
# The page's bounds, which hold for whoever calls it without a browser too.
MOST_PICTURES, MOST_STEPS, MOST_GUIDANCE, MOST_LETTERS = 8, 100, 10.0, 300
PREVIEWS = 5  # intermediate pictures, in addition to the last
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


def read_wish(defaults: SamplingConfig, *fields: object) -> Wish:
    """The fields of a `Wish` as the page sends them; one that was cleared takes its default.

    Raises:
        ValueError: a value that the page does not offer; names the field.
    """
    usual = ("", "", defaults.guidance_scale, defaults.steps, defaults.sampler, 0, USUAL_PICTURES)
    given = [u if field is None else field for field, u in zip(fields, usual, strict=True)]
    prompt, negative, scale, steps, sampler, seed, count = given
    how = arguments.read_sampling(defaults, scale, _whole(steps), sampler)
    (seed,) = arguments.read_seeds([_whole(seed)])
    count = arguments.read_count(_whole(count), "pictures")
    if count > MOST_PICTURES or how.steps > max(MOST_STEPS, defaults.steps):
        raise ValueError(
            f"{count} pictures, {how.steps} steps: ask for at most {MOST_PICTURES} pictures and "
            f"{max(MOST_STEPS, defaults.steps)} steps"
        )
    prompt = arguments.read_text(prompt, "prompt")
    negative = arguments.read_negative_prompt(negative)
    return Wish(prompt, negative, how.guidance_scale, how.steps, how.sampler, seed, count)


def _whole(value: object) -> object:
    """4.0 as 4: JSON knows one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


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


def save_picture(picture: torch.Tensor, wish: Wish, seed: int, folder: Path, config: Config) -> str:
    """Write a picture (3, H, W) in [0, 1] as PNG with what made it; returns the path.

    Args:
        config: of the model that made it.
    """
    made = {
        "seed": seed,
        "model": config.name,
        "guidance_interval": config.sampling.guidance_interval,
        "guide_epoch": config.sampling.guide_epoch,
        "decoder": config.models.decoder,
    }
    facts = PngInfo()
    facts.add_text("parameters", json.dumps(asdict(wish) | made))
    path = folder / f"face_{seed}.png"
    transforms.to_pil_image(picture).save(path, pnginfo=facts)
    return str(path)


def denoise(
    model: TextToFace, wish: Wish, preview: VAEWrapper | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (step, pictures (B, 3, H, W)) a few times during sampling, then at the end.

    Args:
        preview: a tiny autoencoder of the same latents that decodes intermediate latents; the last
            pictures are always the model's own.
    """
    seeds = range(wish.seed, wish.seed + wish.count)
    prompts = [wish.prompt] * wish.count
    how = wish.sampler, wish.steps
    model.require_fit([wish.prompt, wish.negative_prompt], *how)
    predict = model.predictor(prompts, wish.guidance_scale, wish.negative_prompt)
    every = max(1, wish.steps // PREVIEWS)
    with freed_memory_kept(model.device):
        for step, latents in enumerate(model.trajectory(predict, seeds, *how)):
            if step == wish.steps:
                yield step, model.decode(latents)
            elif step % every == 0:
                yield step, preview.decode(latents).cpu() if preview else model.decode(latents)


def draw(
    model: TextToFace, wish: Wish, folder: Path, preview: VAEWrapper | None = None
) -> Iterator[tuple[list[str], str]]:
    """Yield the pictures' files, in the folder, and a line of progress as the wish is denoised.

    Raises:
        ValueError: the wish cannot be met (too long a prompt, a number of steps that the sampler
            does not take); says why.
    """
    for step, pictures in denoise(model, wish, preview):
        part = folder / str(step)
        part.mkdir(parents=True)
        files = [
            save_picture(picture, wish, wish.seed + i, part, model.config)
            for i, picture in enumerate(pictures)
        ]
        yield files, f"step {step} of {wish.steps}" if step < wish.steps else "done"


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
        answer = partial(_answer, partial(draw, model, preview=preview), defaults)
        gr.on(
            [button.click, prompt.submit, other.submit],
            answer,
            [prompt, other, *settings],
            [shown, compared, status],
            api_name="draw",
            preprocess=False,  # a slider's own fails on None, what it sends when it is cleared
            # Two keep a CPU busy while one of them writes files; on a GPU they share its memory.
            concurrency_limit=2 if model.device.type == "cpu" else 1,
        )
    page.queue(max_size=16)
    return page


def _gallery(label: str, name: str) -> gr.Gallery:
    gr.Markdown(f"**{label}**")  # a label of the gallery's own would cover the first picture
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
    scale, steps = defaults.guidance_scale, defaults.steps
    with gr.Accordion("Settings", open=False):
        return [
            gr.Textbox("", label="Negative prompt", max_length=MOST_LETTERS),
            gr.Slider(0, max(MOST_GUIDANCE, scale), value=scale, step=0.1, label="Guidance"),
            gr.Slider(1, max(MOST_STEPS, steps), value=steps, step=1, label="Steps"),
            gr.Dropdown(list(SAMPLERS), value=defaults.sampler, label="Sampler"),
            gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31),
            gr.Slider(1, MOST_PICTURES, value=USUAL_PICTURES, step=1, label="Pictures"),
        ]


def _answer(
    drawer: Callable[[Wish, Path], Iterator[tuple[list[str], str]]],
    defaults: SamplingConfig,
    prompt: str | None,
    other: str | None,
    *settings: object,
) -> Iterator[tuple[list[str], list[str], str]]:
    """Yield both galleries and the line of progress.

    Raises:
        gr.Error: the wish cannot be met; the page shows why.
    """
    first: list[str] = []
    try:
        wish = read_wish(defaults, prompt, *settings)
        with tempfile.TemporaryDirectory(prefix="faces_") as name:  # the page keeps its own copies
            folder = Path(name)
            for first, line in drawer(wish, folder / "first"):
                yield first, [], line
            if other and other.strip():
                for files, line in drawer(replace(wish, prompt=other), folder / "second"):
                    yield first, files, line if line == "done" else f"other prompt, {line}"
    except (ValueError, FloatingPointError) as error:
        raise gr.Error(str(error)) from error


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Serve the page until Ctrl-C; prints its address when it can be opened."""
    name = f"[{host}]" if ":" in host.strip("[]") and not host.startswith("[") else host
    page.launch(
        server_name=name,
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        theme=THEME,
    )
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else name
    print(f"open http://{shown}:{port} in a browser; Ctrl-C stops", flush=True)
    try:
        while page.is_running:
            time.sleep(0.2)
    finally:
        page.close(verbose=False)
