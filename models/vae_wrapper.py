"""The frozen autoencoder: images to scaled latents and back.

The only place that knows the latent scale. It is read from the model's own config, so that
`stabilityai/sd-vae-ft-mse` (0.18215), TAESD (1) and the demo's own autoencoder are handled alike.

Another decoder may decode them (`models.decoder`); one that was opened alone has no encoder.

Shapes: B batch, C latent channels, H x W image, h x w = H/8 x W/8 latents.
"""

from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from models.loading import fingerprint, open_model


class Posterior(NamedTuple):
    """Gaussian over scaled latents that an image is encoded to."""

    mean: torch.Tensor  # (B, C, h, w)
    std: torch.Tensor  # (B, C, h, w); zero for a deterministic autoencoder

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """mean + std * noise."""
        return self.mean + self.std * noise


class VAEWrapper(nn.Module):
    """A frozen AutoencoderKL or AutoencoderTiny whose latents have about unit variance."""

    def __init__(self, autoencoder: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        # Channels last halves TAESD's time on a CPU in bfloat16, and is what tensor cores take.
        autoencoder = autoencoder.to(memory_format=torch.channels_last)
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.scale = float(autoencoder.config.scaling_factor)
        self.shift = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)
        self.made_for: str | None = None  # the encoder that a decoder alone belongs to

    @classmethod
    def from_pretrained(cls, name: str) -> "VAEWrapper":
        """Open a hub id or a local folder of either class, in float32.

        Raises:
            FileNotFoundError, ValueError: see `open_model`.
        """
        kinds = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
        return cls(open_model(kinds, name, "autoencoder (models.autoencoder or decoder)"))

    @property
    def latent_channels(self) -> int:
        """Channels of a latent: 4 for Stable Diffusion's first autoencoders."""
        return self.autoencoder.config.latent_channels

    @property
    def downsampling(self) -> int:
        """How many pixels one latent position covers along a side: 8."""
        config, is_tiny = self.autoencoder.config, isinstance(self.autoencoder, AutoencoderTiny)
        widths = config.encoder_block_out_channels if is_tiny else config.block_out_channels
        return 2 ** (len(widths) - 1)

    @property
    def upsampling(self) -> int:
        """How many pixels the decoder makes of one latent position along a side: as many as the
        encoder sees, or more where it was made for larger pictures.
        """
        config = self.autoencoder.config
        if isinstance(self.autoencoder, AutoencoderTiny):
            return config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
        return self.downsampling

    @property
    def has_encoder(self) -> bool:
        """Whether images can be encoded; a decoder that was opened alone only decodes."""
        return self.autoencoder.encoder is not None

    @property
    def latent_key(self) -> tuple[str, float, float]:
        """What decides the latents: fingerprint of the encoder's weights, scale and shift."""
        return self._fingerprint("encoder", "quant_conv"), self.scale, self.shift

    @property
    def decoder_key(self) -> str:
        """What decides the pictures of given latents: fingerprint of the decoder's weights."""
        return self._fingerprint("decoder", "post_quant_conv")

    def _fingerprint(self, *names: str) -> str:
        parts = [getattr(self.autoencoder, name, None) for name in names]
        return fingerprint(*(part for part in parts if part is not None))

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> Posterior:
        """Images float (B, 3, H, W) in [-1, 1] -> posterior over scaled latents (B, C, H/8, W/8).

        Raises:
            ValueError: images of another shape, type or range; uint8 or [0, 255] input would be
                encoded without an error, into nonsense.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"expected float (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        if images.abs().max() > 1.001:
            raise ValueError(
                f"expected images in [-1, 1], got {images.min():.3g} to {images.max():.3g}"
            )
        return self.posterior(images)

    @torch.no_grad()
    def posterior(self, images: torch.Tensor) -> Posterior:
        """As `encode`, for images that are known to be in [-1, 1]: on a GPU the host would have to
        wait for it to look.

        Raises:
            ValueError: the decoder was opened alone.
        """
        if not self.has_encoder:
            raise ValueError("this decoder was opened without the encoder of its latents")
        if isinstance(self.autoencoder, AutoencoderTiny):
            latents = self.autoencoder.encode(images).latents.float()
            mean, std = latents, torch.zeros_like(latents)
        else:
            gaussian = self.autoencoder.encode(images).latent_dist
            mean, std = gaussian.mean.float(), gaussian.std.float()
        return Posterior((mean - self.shift) * self.scale, std * self.scale)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> images float (B, 3, H, W) in [0, 1], H = upsampling h."""
        return (self.decode_unclamped(latents) / 2 + 0.5).clamp(0, 1)

    def decode_unclamped(self, latents: torch.Tensor) -> torch.Tensor:
        """As `decode`, but around [-1, 1] and with gradients: to train a decoder."""
        return self.autoencoder.decode(latents / self.scale + self.shift).sample.float()
