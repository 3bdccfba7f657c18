"""A run as a folder that diffusers opens alone: `python export.py --preset demo`.

The parts of this experiment (autoencoder, CLIP text model, UNet with cross-attention, scheduler)
are those of Stable Diffusion, so `StableDiffusionPipeline.from_pretrained` opens the folder, and
the image-to-image and inpainting pipelines do too. Nothing of this repository is needed there.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline

from command_line import command, config_from, parser
from config import Config, SamplingConfig
from diffusion.objective import TARGETS
from diffusion.sampling import build_sampler
from files import write_text
from inference.text_to_face import TextToFace
from models.loading import fingerprint
from models.text_encoder import save_text_weights, save_tokenizer
from training import checkpoints

# Of an evaluation, for the card.
LEADING = ("FID", "frechet_distance", "recall", "clip_score", "balanced_accuracy")
SHOWN = ("n", "seeds", "precision", "computed_on", "reference", "format")
CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
license: {licence}
tags: [text-to-image, latent-diffusion, faces]
---
# Text-to-face latent diffusion, preset `{name}`

A UNet of {parameters:.1f}M parameters, trained to predict {target} on the latents of {data} at
{size} px, under captions made from the 40 attributes of CelebA. Autoencoder: `{autoencoder}`.
Text encoder: `{text_encoder}`. Both were frozen. {drawn}The weights are the moving average after
{step} steps of {batch} faces ({epoch} epochs). Sampler: `{sampler}`.

Written with {versions}; opens with diffusers 0.35 and transformers 4.56 or newer.

```python
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("this folder")
generator = torch.Generator().manual_seed(0)
image = pipeline(
    "{prompt}",
    num_inference_steps={steps}, guidance_scale={guidance_scale}, generator=generator,
).images[0]
```

## Recipe

{diffusion}

{training}

## Measured

{measured}

## Use and limits

{limits}
"""
DRAWN = """The faces are drawings (Avataaars by Pablo Stanley), and the frozen models know nothing
else. This model shows that a pipeline works; it is of no other use."""
REAL = """For non-commercial research only, as CelebA-HQ is. CelebA's labels were given by few
annotators, are noisy, and judge looks ("attractive", "big nose"); its people are celebrities,
mostly young and light-skinned, and the model repeats that. Do not use it to judge people, to depict
real ones, or to deceive."""


def export(checkpoint_path: Path, out: Path, evaluations: Path, changes: Sequence[str] = ()) -> Path:
    """Write the averaged weights of a checkpoint as a Stable Diffusion pipeline with a model card.

    Args:
        evaluations: folder of the run's evaluations; the card says so where there is none.
        changes: see `sampled_otherwise`; a decoder is exported in the autoencoder's place.

    Raises:
        FileNotFoundError: the frozen models are not available.
        FileExistsError: `out` holds something that was not exported.
        ValueError: pictures are made in a way that a pipeline does not know.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "model_index.json").is_file():
        raise FileExistsError(
            f"{out} is not empty and was not exported by this command: name another folder"
        )
    checkpoint = checkpoints.load_checkpoint(checkpoint_path)
    model = TextToFace.from_checkpoint(checkpoint_path, for_sampling=False, changes=changes)
    _require_plain_guidance(model.config.sampling)
    tokenizer = model.text_encoder.tokenizer
    tokenizer.model_max_length = model.text_encoder.max_tokens  # the pipeline pads to it
    pipeline = StableDiffusionPipeline(
        vae=model.vae.autoencoder.to(memory_format=torch.contiguous_format),
        text_encoder=model.text_encoder.model,
        tokenizer=tokenizer,
        unet=model.unet.to(memory_format=torch.contiguous_format),
        scheduler=build_sampler(model.config.sampling.sampler, model.objective),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    save_text_weights(pipeline.text_encoder, out / "text_encoder")
    save_tokenizer(tokenizer, out / "tokenizer")
    decoder = fingerprint(model.vae) if model.config.models.decoder else None
    measured = _measured(
        evaluations, checkpoints.identity(checkpoint_path), decoder, model.config.sampling
    )
    checkpoint = replace(checkpoint, config=model.config)
    write_text(out / "README.md", model_card(checkpoint, measured))
    return out


def _require_plain_guidance(sampling: SamplingConfig) -> None:
    """A StableDiffusionPipeline is guided by the empty caption at every step."""
    if sampling.guide_epoch:
        raise ValueError(
            "sampling.guide_epoch: a StableDiffusionPipeline is guided by the empty caption alone; "
            "export with --set sampling.guide_epoch=none"
        )
    if sampling.guidance_interval != (0, 1):
        raise ValueError(
            f"sampling.guidance_interval {sampling.guidance_interval}: a StableDiffusionPipeline "
            "is guided at every step; export with --set sampling.guidance_interval=0,1"
        )


def model_card(checkpoint: checkpoints.Checkpoint, measured: str) -> str:
    """The page that goes with an exported model: data, recipe, numbers and protocol, limits."""
    config = checkpoint.config
    drawn = bool(config.data.drawn_counts)
    return CARD.format(
        name=config.name,
        parameters=sum(value.numel() for value in checkpoint.unet.values()) / 1e6,
        target=TARGETS[config.diffusion.prediction_type].description,
        data="drawn faces" if drawn else "CelebA-HQ (train split)",
        size=config.data.image_size,
        autoencoder=config.models.autoencoder,
        drawn=_drawn(config),
        text_encoder=config.models.text_encoder,
        step=checkpoint.step,
        batch=config.training.batch_size,
        epoch=checkpoint.epoch,
        sampler=config.sampling.sampler,
        versions=f"torch {torch.__version__}, diffusers {diffusers.__version__} and transformers "
        f"{transformers.__version__}",
        prompt=config.sampling.prompts[0],
        steps=config.sampling.steps,
        guidance_scale=config.sampling.guidance_scale,
        diffusion=_table(config.to_dict()["diffusion"]),
        training=_table(config.to_dict()["training"]),
        measured=measured,
        licence="mit" if drawn else "other\nlicense_name: non-commercial-research",
        limits=DRAWN if drawn else REAL,
    )


def _drawn(config: Config) -> str:
    """What the card says of a decoder that is not the autoencoder's own."""
    if not config.models.decoder:
        return ""
    drawn = f"Pictures are drawn by the decoder `{config.models.decoder}`"
    if config.picture_size == config.data.image_size:
        return f"{drawn}. "
    return (
        f"{drawn}, at {config.picture_size} px; an image-to-image pipeline takes images of "
        f"{config.data.image_size} px. "
    )


def _table(values: dict[str, object]) -> str:
    rows = [f"| `{name}` | {value} |" for name, value in values.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _measured(
    evaluations: Path, model: str, decoder: str | None, sampling: SamplingConfig
) -> str:
    """The leading numbers of the newest evaluation whose pictures were made as the pipeline makes
    them.
    """
    exported = {
        "model": model,
        "decoder": decoder,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "guidance_interval": [0, 1],
        "guided_by": None,
    }
    found = sorted(evaluations.glob("[!.]*/protocol.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        protocol = json.loads(path.read_text(encoding="utf-8"))
        if all(protocol.get(name) == value for name, value in exported.items()):
            rows = json.loads((path.parent / "metrics.json").read_text(encoding="utf-8"))
            return _leading(rows, {name: protocol.get(name) for name in (*exported, *SHOWN)})
    return (
        "Nothing was measured of these weights under these settings: run the notebook "
        "`metrics1`, export again."
    )


def _leading(rows: Sequence[dict[str, Any]], protocol: dict[str, Any]) -> str:
    """Distance, recall, CLIP score and attribute consistency as a table, with the protocol."""
    lines = ["| number | set | value | 95% | n |", "|---|---|---|---|---|"]
    for row in rows:
        if row["question"] in LEADING:
            value, low, high = (f"{row[name]:.3f}" for name in ("value", "low", "high"))
            name = f"{row['question']} ({row['space']})"
            lines.append(f"| {name} | {row['set']} | {value} | {low} to {high} | {row['n']} |")
    facts = ", ".join(f"{key}: {value}" for key, value in protocol.items() if value is not None)
    return "\n".join([*lines, "", f"Protocol: {facts}."])


@command
def main() -> None:
    """Export the newest checkpoint of a preset's run."""
    options = parser(__doc__)
    options.add_argument("--out", type=Path, help="default: outputs/<preset>/pipeline")
    options.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the folder as well")
    arguments = options.parse_args()
    config = config_from(arguments)
    out = arguments.out or config.output_folder / "pipeline"
    path = checkpoints.require_checkpoint(config.run_folder)
    evaluations = config.output_folder / "evaluations"
    print(f"{path.name} -> {export(path, out, evaluations, arguments.changes)}")
    if arguments.push_to_hub:
        from huggingface_hub import HfApi

        HfApi().create_repo(arguments.push_to_hub, exist_ok=True, private=True)
        HfApi().upload_folder(repo_id=arguments.push_to_hub, folder_path=out)


if __name__ == "__main__":
    main()
