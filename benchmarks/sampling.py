"""Sampling: against the 50-step DDIM of diffusers' StableDiffusionPipeline.

`python -m benchmarks.sampling [--quick] [--preset demo]`. Time is taken at full size, where the
weights do not matter; quality on the trained run of a preset, where there is one: the same captions
and seeds under the peer's settings and under faster ones, read by the judge.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import full_size, measure
from benchmarks.diffusers_pipeline import pipeline
from config import Config, SamplingConfig, celeba_hq_best, get_config
from custom_datasets.opening import open_faces
from diffusion.objective import build_objective
from diffusion.sampling import build_sampler
from evaluation.features import extract_features, judge_features
from evaluation.report import as_uint8
from evaluation.sets import in_random_order
from evaluation.sweep import sweep
from inference.text_to_face import TextToFace
from models.attribute_classifier import AttributeClassifier
from models.device import cast_matrices
from models.vae_wrapper import VAEWrapper
from training import checkpoints

PROMPT = "A portrait of an older man with eyeglasses"
PEER = SamplingConfig("ddim", 50)
FASTER = {  # name -> sampler, steps
    "dpm++ 20": SamplingConfig("dpm++", 20),
    "dpm++ 12": SamplingConfig("dpm++", 12),
    "dpm++ 10": SamplingConfig("dpm++", 10),
    "dpm++ 8": SamplingConfig("dpm++", 8),
}


def draw(model: TextToFace, prompts: Sequence[str], settings: SamplingConfig) -> torch.Tensor:
    """Pictures under these settings, at the model's own guidance scale."""
    return model.generate(
        prompts,
        range(len(prompts)),
        steps=settings.steps,
        sampler=settings.sampler,
    )


def full_size_times(rounds: int) -> dict[str, measure.Timing]:
    """Seconds a picture at 256 px, one at a time, in bfloat16 on both sides."""
    text_encoder, vae = full_size.text_encoder(), full_size.autoencoder()
    unet = full_size.unet().eval().requires_grad_(False)
    config = celeba_hq_best()
    cast_matrices(unet, "bf16")
    objective = build_objective(config.diffusion)
    peer, swapped = (
        pipeline(
            full_size.unet(),
            full_size.text_encoder(),
            full_size.autoencoder(),
            build_sampler(sampler, objective),
            torch.bfloat16,
        )
        for sampler in ("ddim", "dpm++")
    )
    ours = TextToFace(config, unet, text_encoder, VAEWrapper(vae))
    calls: dict[str, Callable[[], object]] = {
        "StableDiffusionPipeline, ddim 50": lambda: peer(
            PROMPT, num_inference_steps=50, guidance_scale=config.sampling.guidance_scale
        )
    }
    calls["StableDiffusionPipeline, dpm++ 20"] = lambda: swapped(
        PROMPT, num_inference_steps=20, guidance_scale=config.sampling.guidance_scale
    )
    for name, settings in {"ddim 50": PEER, **FASTER}.items():
        calls[name] = partial(draw, ours, [PROMPT], settings)
    latents = torch.randn(1, 4, 32, 32)
    calls["decode alone"] = lambda: ours.decode(latents)
    tiny = VAEWrapper(full_size.tiny_autoencoder())
    calls["decode alone, tiny autoencoder"] = lambda: tiny.decode(latents)
    return measure.alternating(calls, rounds)


def quality(config: Config, count: int) -> dict[str, dict[str, Any]]:
    """Distance, share of stated attributes shown, and seconds of each setting on a trained run.

    The Frechet distance is in the judge's features; intervals are of 95%.
    """
    model = TextToFace.from_run(config.run_folder)
    classifier, judge_facts = AttributeClassifier.load(config.judge_path)
    real = in_random_order(open_faces(config, "test", model.config.picture_size))
    captions = real.captions(count)
    judge = judge_features(classifier)
    stated = [caption.stated for caption in captions]
    taken = []

    def generate(settings: SamplingConfig) -> torch.Tensor:
        start = time.perf_counter()
        images = draw(model, [caption.text for caption in captions], settings)
        taken.append(time.perf_counter() - start)
        return as_uint8(images)

    rows = sweep(
        [PEER, *FASTER.values()],
        generate,
        lambda images: extract_features(judge, images),
        lambda images: classifier.decide(images).numpy(),
        extract_features(judge, real),
        stated,
        judge_facts["reliable"],
    )
    return {
        name: {"distance": row.distance, "shown": row.consistency, "seconds": taken[-1]}
        for name, row in zip(["ddim 50", *FASTER], rows, strict=True)
    }


def main() -> None:
    """Measure, print, write `outputs/bench/sampling.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--preset", default="demo")
    arguments = parser.parse_args()
    config = get_config(arguments.preset)
    trained = checkpoints.newest_checkpoint(config.run_folder) and config.judge_path.is_file()
    rows = quality(config, 200 if arguments.quick else 400) if trained else None
    times = full_size_times(2 if arguments.quick else 5)
    peer = times["StableDiffusionPipeline, ddim 50"].median
    results: dict[str, Any] = {
        "full_size_seconds": times,
        "times_faster": {name: peer / times[name].median for name in FASTER},
    }
    if rows:
        results |= {"preset": config.name, "quality": rows}
    else:
        print(f"no trained run of {config.name}: speed only; `make demo` makes one")
    measure.write("sampling", results)


if __name__ == "__main__":
    main()
