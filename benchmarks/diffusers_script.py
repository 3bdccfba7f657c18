"""The peer in training: one step of diffusers' examples/text_to_image/train_text_to_image.py.

As under `--mixed_precision=bf16 --use_ema`: images are read in the main process, image and caption
encoded at every step by frozen models in bfloat16; the UNet trains under autocast with AdamW.
"""

from collections.abc import Callable
from io import BytesIO

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision import transforms
from torchvision.io import encode_jpeg

from benchmarks import full_size, measure


def image_file() -> bytes:
    """A JPEG file of 1024 px, the size of CelebA-HQ's own, with some detail in it."""
    image = functional.interpolate(torch.rand(1, 3, 128, 128), size=1024, mode="bicubic")[0]
    return encode_jpeg((image.clamp(0, 1) * 255).byte()).numpy().tobytes()


READ = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(256),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ]
)


def read(files: list[bytes]) -> torch.Tensor:
    """Pixels (B, 3, 256, 256) in [-1, 1]."""
    return torch.stack([READ(Image.open(BytesIO(file)).convert("RGB")) for file in files])


def seconds_beside_models(batch: int, rounds: int) -> dict[str, measure.Timing]:
    """What a step spends on reading its images, and on the moving average of the weights."""
    files, unet = [image_file() for _ in range(batch)], full_size.unet()
    ema = EMAModel(unet.parameters())
    calls = {"reading": lambda: read(files), "average": lambda: ema.step(unet.parameters())}
    return measure.alternating(calls, rounds)


def peer_step(batch: int) -> Callable[[], None]:
    """One step of the training of diffusers' script."""
    files = [image_file() for _ in range(batch)]
    vae = full_size.autoencoder().to(torch.bfloat16)
    text_encoder = full_size.text_encoder()
    encode_text = text_encoder.model.to(torch.bfloat16)
    unet = full_size.unet().to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-5)
    ema = EMAModel(unet.parameters())
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    ids = text_encoder.tokenizer(
        [full_size.caption(i) for i in range(batch)],
        padding="max_length",
        max_length=77,
        return_tensors="pt",
    ).input_ids

    def step() -> None:
        pixels = read(files)
        with torch.no_grad():
            latents = (
                vae.encode(pixels.to(torch.bfloat16)).latent_dist.sample()
                * vae.config.scaling_factor
            )
            states = encode_text(ids)[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (batch,))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            prediction = unet(noisy, timesteps, states, return_dict=False)[0]
        functional.mse_loss(prediction.float(), noise.float()).backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    return step
