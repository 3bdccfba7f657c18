"""Writes a model as a folder that diffusers' `StableDiffusionPipeline` opens, with a model card."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from config import SamplingConfig
from diffusion.sampling import build_sampler, spread_timesteps
from files import write_text
from inference.picture_sets import Request
from inference.text_to_face import TextToFace
from models.decoder import whole_autoencoder
from models.text_encoder import save_text_weights, save_tokenizer

# Of an evaluation, for the card.
LEADING = ("FID", "frechet_distance", "recall", "clip_score", "balanced_accuracy")
HEAD = ("| number | set | value | 95% | n |", "|---|---|---|---|---|")
LINE = "| {question} ({space}) | {set} | {value:.3f} | {low:.3f} to {high:.3f} | {n} |"
SAMPLING = tuple(each.name for each in fields(SamplingConfig) if each.name != "prompts")
PROTOCOL = ("n", *SAMPLING, "precision", "reference", "split")
# What has to be the pipeline's own.
DECISIVE = ("model", "decoder", *SAMPLING, "code_version")
TITLE = "# Text-to-face latent diffusion"
CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
license: {licence}
tags: [text-to-image, latent-diffusion, faces]
---
{title}, preset `{config.name}`

A UNet of {parameters:.1f}M parameters, trained with the target
`{config.diffusion.prediction_type}` on latents of {data}.
The weights are the moving average of `{weights}`.

| part | what |
|---|---|
| autoencoder | `{config.models.autoencoder}`, takes {config.data.image_size} px{encoder} |
| decoder | `{decoder}`, makes {config.picture_size} px |
| text encoder | `{config.models.text_encoder}` |

```python
{code}
```

`num_inference_steps={how.steps}` in place of the timesteps makes slightly paler pictures: few of
diffusers' even steps lie where a picture gets its brightness and colours.

Opens with diffusers 0.35 and transformers 4.56 or newer.

## Recipe

```json
{recipe}
```

## Measured

{measured}

## Use and limits

{limits}
"""
PLAIN_PIPELINE = """from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("this folder")"""
PERTURBED_PIPELINE = """from diffusers import StableDiffusionPAGPipeline

layers = ["down_blocks", "mid_block", "up_blocks"]  # all self-attention
pipeline = StableDiffusionPAGPipeline.from_pretrained("this folder", pag_applied_layers=layers)"""
# The pipeline takes one scale for all timesteps, and decides by that of the first one what it
# predicts for all: scales that are almost none keep the predictions that later steps need.
ALMOST_NONE = {"guidance_scale": 1 + 1e-6, "pag_scale": 1e-6}
CALL = """
timesteps = {timesteps}
{late}image = pipeline(
    {prompt},
    timesteps=timesteps,
{options}
).images[0]"""
LATE = """

def guide_late(pipeline, step, timestep, tensors):
    following = min(timesteps[step : step + 2])
{changes}
    return tensors


"""
CHANGE = """    if following < {limit}:
        pipeline._{name} = {scale}"""
NO_ENCODER = "; its encoder is not here: the weights are NaN, and image-to-image does not work"
DRAWN = """The faces are drawings (Avataaars by Pablo Stanley), and the frozen models know nothing
else. This model shows that a pipeline works; it is of no other use."""
OWN = """The pictures that it was trained on decide who may use it and for what: those of CelebA-HQ
are for non-commercial research only. It repeats what they show and how they are labelled. Do not
use it to judge people, to depict real ones, or to deceive."""
REAL = """For non-commercial research only, as CelebA-HQ is. CelebA's labels were given by few
annotators, are noisy, and judge looks ("attractive", "big nose"); its people are celebrities,
mostly young and light-skinned, and the model repeats that. Do not use it to judge people, to depict
real ones, or to deceive."""


def export(model: TextToFace, out: Path, evaluations: Path) -> None:
    """Write a model as a Stable Diffusion pipeline with a model card.

    Args:
        model: opened with `for_sampling=False`, on the CPU.
        evaluations: folder of the run's evaluations; the card says so where there is none.

    Raises:
        FileExistsError: `out` holds something that was not exported.
        ValueError: the pipeline cannot sample as the run does.
    """
    how = model.config.sampling
    if how.guidance_scale < 1:
        raise ValueError(
            f"sampling.guidance_scale={how.guidance_scale}: diffusers' pipeline guides from 1 on; "
            "export with --set sampling.guidance_scale=1"
        )
    out = out.resolve()
    card = out / "README.md"
    is_export = card.is_file() and TITLE in card.read_text(encoding="utf-8", errors="replace")
    if out.is_dir() and any(out.iterdir()) and not is_export:
        raise FileExistsError(f"{out} is not empty and not an export: name another folder")
    autoencoder, has_encoder = whole_autoencoder(model.vae, model.config.models.autoencoder)
    tokenizer = model.text_encoder.tokenizer
    tokenizer.model_max_length = model.text_encoder.max_tokens  # the pipeline pads to it
    scheduler = build_sampler(how.sampler, model.objective)
    scheduler.register_to_config(clip_sample=False)  # DDIM that is made from it would clip latents
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.to(memory_format=torch.contiguous_format),
        text_encoder=model.text_encoder.model,
        tokenizer=tokenizer,
        unet=model.unet.to(memory_format=torch.contiguous_format),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # Made beside it, and put there as a whole: parts of two runs would open without an error.
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # its name says that it is ours
    pipeline.save_pretrained(unfinished, safe_serialization=True)
    save_text_weights(pipeline.text_encoder, unfinished / "text_encoder")
    save_tokenizer(tokenizer, unfinished / "tokenizer")
    write_text(unfinished / card.name, model_card(model, evaluations, has_encoder))
    for file in unfinished.rglob("*.safetensors"):  # which are made for their owner alone
        file.chmod((unfinished / card.name).stat().st_mode)
    if out.is_dir():
        shutil.rmtree(out)
    unfinished.rename(out)


def model_card(model: TextToFace, evaluations: Path, has_encoder: bool) -> str:
    """The page that goes with an exported model: data, recipe, numbers and protocol, limits."""
    config = model.config
    values, source = config.to_dict(), config.data.source
    scheduler = build_sampler(config.sampling.sampler, model.objective)
    if config.data.is_drawn:
        data, limits = "drawn faces, under captions of their attributes", DRAWN
        licence = "mit"
    elif source is None:
        data, limits = "CelebA-HQ (train split), under captions of its 40 attributes", REAL
        licence = "other\nlicense_name: non-commercial-research"
    else:
        data, limits = f"`{Path(source).name}`, under its captions", OWN
        licence = "other\nlicense_name: of-the-pictures"
    how = config.sampling
    return CARD.format(
        title=TITLE,
        licence=licence,
        config=config,
        how=how,
        code=sampling_code(how, spread_timesteps(scheduler, how.steps)),
        parameters=model.unet.num_parameters() / 1e6,
        data=data,
        weights=model.identity,
        decoder=config.models.decoder or config.models.autoencoder,
        encoder="" if has_encoder else NO_ENCODER,
        recipe=json.dumps({name: values[name] for name in ("diffusion", "training")}, indent=2),
        measured=measured(evaluations, model),
        limits=limits,
    )


def sampling_code(how: SamplingConfig, timesteps: list[int]) -> str:
    """The code with which diffusers alone samples as the run does."""
    scales = {"guidance_scale": how.guidance_scale}
    limits = {"guidance_scale": how.guidance_below if how.guidance_scale > 1 else None}
    if how.perturbed_attention_scale:
        scales["pag_scale"] = how.perturbed_attention_scale
        limits["pag_scale"] = how.perturbed_attention_below
    # Above the first timestep a limit leaves nothing out.
    late = [name for name, at in limits.items() if at is not None and at <= timesteps[0]]
    first = scales | {name: ALMOST_NONE[name] for name in late}
    options = [f"    {name}={scale}," for name, scale in first.items()]
    changes = [CHANGE.format(name=name, limit=limits[name], scale=scales[name]) for name in late]
    return (PERTURBED_PIPELINE if "pag_scale" in scales else PLAIN_PIPELINE) + CALL.format(
        timesteps=timesteps,
        prompt=json.dumps(how.prompts[0], ensure_ascii=False),  # its quotes escaped
        options="\n".join([*options, "    callback_on_step_end=guide_late,"] if late else options),
        late=LATE.format(changes="\n".join(changes)) if late else "",
    )


def measured(evaluations: Path, model: TextToFace) -> str:
    """The leading numbers of the newest evaluation whose pictures were made as the pipeline makes
    them.
    """
    exported = Request(("",), (0,), model.config.sampling).protocol(model)
    found = sorted(evaluations.glob("[!.]*/protocol.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        protocol = json.loads(path.read_text(encoding="utf-8"))
        if all(protocol.get(name) == exported.get(name) for name in DECISIVE):
            rows = json.loads((path.parent / "metrics.json").read_text(encoding="utf-8"))
            lines = [LINE.format(**row) for row in rows if row["question"] in LEADING]
            facts = [f"{name} {protocol[name]}" for name in PROTOCOL if name in protocol]
            if lines:  # none in a sweep
                return "\n".join([*HEAD, *lines, "", f"Pictures: {', '.join(facts)}."])
    return "Nothing: run the notebook `metrics1` with these weights and settings, export again."
