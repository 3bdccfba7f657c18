"""The peers: diffusers' training script and its StableDiffusionPipeline, over models like ours.

Weights are random at full size, and those of `assets/` in `demo`: speed does not depend on them.
"""

from collections.abc import Callable
from io import BytesIO

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision import transforms
from torchvision.io import encode_jpeg

from benchmarks import full_size
from benchmarks.worker import text_encoder
from config import Config, get_config
from diffusion.objective import Objective
from diffusion.sampling import build_sampler, spread_timesteps
from inference.text_to_face import TextToFace
from models.custom_unet_celeba_ldm import build_unet
from models.device import PRECISIONS, autocast, cast_matrices, choose_precision
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper

PROMPT = "A portrait of an older man with eyeglasses"
CPU = torch.device("cpu")
PRECISION = choose_precision("auto", CPU)  # for both sides: bfloat16 where the processor has it
DTYPE = PRECISIONS.get(PRECISION, torch.float32)


def frozen_models(config: Config) -> tuple[TextEncoder, AutoencoderKL]:
    """Text encoder and autoencoder of a preset's shapes."""
    if config.unet.text_width == 512:
        return text_encoder(config), full_size.autoencoder()
    return text_encoder(config), VAEWrapper.from_pretrained(config.models.autoencoder).autoencoder


def training_step(preset: str, count: str) -> Callable[[], None]:
    """A step of examples/text_to_image/train_text_to_image.py, as under `--use_ema`.

    Images are read in the main process; image and caption are encoded at every step by frozen
    models in `PRECISION`; the UNet trains under autocast with AdamW.
    """
    config, batch = get_config(preset), int(count)
    size = config.data.image_size
    read = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    encoder, vae = frozen_models(config)
    vae, encode_text = vae.to(DTYPE), encoder.model.to(DTYPE)
    unet = build_unet(config.unet).to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.AdamW(unet.parameters(), config.training.learning_rate)
    ema = EMAModel(unet.parameters())
    scheduler = DDPMScheduler(beta_schedule=config.diffusion.beta_schedule)
    files = [_image_file(4 * size) for _ in range(batch)]  # CelebA-HQ's own size, at full size
    captions = [full_size.caption(face) for face in range(batch)]
    ids = encoder.tokenizer(
        captions, padding="max_length", max_length=encoder.max_tokens, return_tensors="pt"
    ).input_ids

    def step() -> None:
        pixels = torch.stack([read(Image.open(BytesIO(file)).convert("RGB")) for file in files])
        with torch.no_grad():
            encoded = vae.encode(pixels.to(DTYPE))
            is_tiny = isinstance(vae, AutoencoderTiny)  # its latents have no distribution
            latents = encoded.latents if is_tiny else encoded.latent_dist.sample()
            latents = latents * vae.config.scaling_factor
            states = encode_text(ids)[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (batch,))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with autocast(PRECISION, CPU):
            prediction = unet(noisy, timesteps, states, return_dict=False)[0]
        functional.mse_loss(prediction.float(), noise.float()).backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    return step


def _image_file(size: int) -> bytes:
    """A JPEG file with some detail in it."""
    image = functional.interpolate(torch.rand(1, 3, 128, 128), size=size, mode="bicubic")[0]
    return encode_jpeg((image.clamp(0, 1) * 255).byte()).numpy().tobytes()


def our_sampling(preset: str, sampler: str, steps: str) -> Callable[[], object]:
    """One picture by `TextToFace`, guided as the pipeline is: at every step, and in one way."""
    plain = ["sampling.guidance_below=none", "sampling.perturbed_attention_scale=0"]
    config = get_config(preset, plain)
    unet = build_unet(config.unet).eval().requires_grad_(False)
    cast_matrices(unet, PRECISION)
    encoder, vae = frozen_models(config)
    model = TextToFace(config, unet, encoder, VAEWrapper(vae), PRECISION)
    return lambda: model.generate([PROMPT], [0], steps=int(steps), sampler=sampler)


def pipeline_sampling(preset: str, sampler: str, steps: str) -> Callable[[], object]:
    """One picture by diffusers' pipeline as users run it: in plain layout, all in `PRECISION`."""
    config = get_config(preset)
    encoder, vae = frozen_models(config)
    encoder.tokenizer.model_max_length = encoder.max_tokens  # the pipeline pads to it
    unet = build_unet(config.unet).eval()
    peer = StableDiffusionPipeline(
        vae=vae.to(DTYPE, memory_format=torch.contiguous_format),
        text_encoder=encoder.model.to(DTYPE),
        tokenizer=encoder.tokenizer,
        unet=unet.to(DTYPE, memory_format=torch.contiguous_format),
        scheduler=build_sampler(sampler, Objective(config.diffusion)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    peer.set_progress_bar_config(disable=True)
    size, scale = config.data.image_size, config.sampling.guidance_scale
    times = spread_timesteps(peer.scheduler, int(steps))
    return lambda: peer(PROMPT, height=size, width=size, timesteps=times, guidance_scale=scale)
