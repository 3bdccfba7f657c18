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

import numpy as np
import torch
from torchvision.transforms.v2.functional import to_dtype

from benchmarks import full_size, measure
from benchmarks.diffusers_pipeline import pipeline
from config import Config, SamplingConfig, celeba_hq_best, get_config
from custom_datasets.opening import open_faces
from diffusion.objective import build_objective
from diffusion.sampling import build_sampler
from evaluation.consistency import Rates, asked_values, reliable_only
from evaluation.features import extract
from evaluation.networks import FeatureNetwork
from evaluation.sets import in_random_order
from evaluation.sweep import sweep
from inference.text_to_face import TextToFace
from models.attribute_classifier import AttributeClassifier
from models.device import cast_matrices
from models.vae_wrapper import VAEWrapper
from training import checkpoints

PROMPT = "A portrait of an older man with eyeglasses"
PEER = SamplingConfig("ddim", 50)
FASTER = {  # name -> sampler, steps, guidance interval
    "dpm++ 20": SamplingConfig("dpm++", 20),
    "dpm++ 20, interval": SamplingConfig("dpm++", 20, guidance_interval=(0.15, 0.85)),
    "dpm++ 12, interval": SamplingConfig("dpm++", 12, guidance_interval=(0.15, 0.85)),
    "dpm++ 10, interval": SamplingConfig("dpm++", 10, guidance_interval=(0.15, 0.85)),
    "dpm++ 8, interval": SamplingConfig("dpm++", 8, guidance_interval=(0.15, 0.85)),
}


def draw(model: TextToFace, prompts: Sequence[str], settings: SamplingConfig) -> torch.Tensor:
    """Pictures under these settings, at the model's own guidance scale."""
    return model.generate(
        prompts,
        range(len(prompts)),
        steps=settings.steps,
        sampler=settings.sampler,
        guidance_interval=settings.guidance_interval,
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
    real = in_random_order(open_faces(config, None, model.config.picture_size), "test")
    captions = real.captions(count)
    judge = FeatureNetwork("judge", classifier.features)
    asked = reliable_only(asked_values([each.stated for each in captions]), judge_facts["reliable"])
    features, shown, taken = {}, {}, []
    for name, settings in {"ddim 50": PEER, **FASTER}.items():
        start = time.perf_counter()
        images = draw(model, [caption.text for caption in captions], settings)
        taken.append(time.perf_counter() - start)
        images = to_dtype(images, torch.uint8, scale=True)
        features[name] = extract(judge, images, torch.device("cpu"))
        shown[name] = Rates(classifier.decide(images).numpy(), asked).shown
    reference = extract(judge, real, torch.device("cpu"))
    table = sweep("judge", features, reference, shown, np.arange(count))
    found = {(each.question, each.set): each for each in table}
    return {
        name: {
            "distance": found["sweep_distance", name],
            "shown": found["sweep_shown", name],
            "seconds": seconds,
        }
        for name, seconds in zip(features, taken, strict=True)
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
