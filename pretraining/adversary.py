"""Opponents that tell drawn pictures from real ones, patch by patch, and are trained on the way.

Where latents leave detail open, a loss of pixels is least for the mean of all that it could be,
which is a blur. So two discriminators look at the picture, at its size and at half of it, and at
the latents that it was drawn from. The decoder has to deceive them (hinge loss, Miyato et al. 2018)
and to show them the same features as the real picture (feature matching, Wang et al. 2018,
pix2pixHD), which tells it where detail belongs. They start from random weights and are thrown away:
they are no networks that judge pictures later.

They have to learn within minutes. So each is given the two finest bands of the Laplacian pyramid
beside the picture, as strong as the picture. From pixels alone it would not tell the two apart for
hundreds of steps: in a picture fine detail is faint.

Shapes: B batch, C latent channels, H x W pictures, h x w latents.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.device import autocast
from pretraining.sharpness import laplacian_pyramid

WIDTH = 64  # channels of the first layer
FINE_GAIN, MIDDLE_GAIN = 8.0, 5.0  # bring the bands of faces to the strength of their pixels
BETAS = (0.5, 0.99)  # of Adam; a low first one, as the opponents' game keeps changing


class Judgement(NamedTuple):
    """What a discriminator sees in pictures, layer by layer, and its logits: positive is real."""

    features: list[Tensor]
    logits: Tensor


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) and latents (B, C, h, w) -> logits of patches, (B, 1, H/8, W/8)."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(9, WIDTH, 4, 2, 1)
        widths = [WIDTH, 2 * WIDTH, 4 * WIDTH]
        self.halving = nn.ModuleList(_layer(a, b, 4, 2) for a, b in pairwise(widths))
        self.latents = nn.Conv2d(latent_channels, widths[-1], 3, 1, 1)
        self.joined = _layer(widths[-1], widths[-1], 3, 1)
        self.logits = nn.Conv2d(widths[-1], 1, 3, 1, 1)

    def forward(self, images: Tensor, latents: Tensor) -> Judgement:
        """See the class."""
        fine, middle, _ = laplacian_pyramid(images, bands=3)
        middle = F.interpolate(middle, scale_factor=2)  # (B, 3, H, W)
        seen = torch.cat([images, FINE_GAIN * fine, MIDDLE_GAIN * middle], dim=1)  # (B, 9, H, W)
        features = [_active(self.first(seen))]
        for layer in self.halving:
            features.append(_active(layer(features[-1])))
        told = F.interpolate(self.latents(latents), features[-1].shape[-2:], mode="nearest")
        features.append(_active(self.joined(features[-1] + told)))
        return Judgement(features, self.logits(features[-1]).float())


def _layer(before: int, after: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, after))


def _active(features: Tensor) -> Tensor:
    return F.leaky_relu(features, 0.2)


class Adversary:
    """The two discriminators with their optimiser.

    Args:
        precision: autocast precision, see `models.device.choose_precision`.
    """

    def __init__(
        self, latent_channels: int, learning_rate: float, device: torch.device, precision: str
    ) -> None:
        networks = nn.ModuleList(PatchDiscriminator(latent_channels) for _ in range(2))
        self.networks = networks.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.networks.parameters(), learning_rate, betas=BETAS)
        self.precision = precision

    def judge(self, images: Tensor, latents: Tensor) -> list[Judgement]:
        """What both see, in pictures of full and of half size."""
        sizes = (images, F.avg_pool2d(images, 2))
        with autocast(self.precision, images.device):
            pairs = zip(self.networks, sizes, strict=True)
            return [network(pictures, latents) for network, pictures in pairs]

    def learn(
        self, real: Tensor, drawn: Tensor, latents: Tensor, learning_rate: float
    ) -> tuple[float, list[Judgement]]:
        """One step towards telling the two apart.

        Returns:
            The hinge loss, 1 where they cannot, and what they saw in the real pictures.
        """
        self.networks.requires_grad_(True)
        seen, others = self.judge(real, latents), self.judge(drawn.detach(), latents)
        margins = [1 - one.logits for one in seen] + [1 + one.logits for one in others]
        loss = torch.stack([F.relu(margin).mean() for margin in margins]).mean()
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.networks.requires_grad_(False)
        return loss.item(), seen

    def losses(
        self, drawn: Tensor, latents: Tensor, real: list[Judgement]
    ) -> tuple[Tensor, Tensor]:
        """How little drawn pictures look real, and how far their features are from the real ones'.

        Args:
            real: what `learn` returned for the real pictures.
        """
        found = self.judge(drawn, latents)
        deceived = -torch.stack([one.logits.mean() for one in found]).mean()
        distances = [
            F.l1_loss(mine, wanted.detach())
            for drawn_seen, real_seen in zip(found, real, strict=True)
            for mine, wanted in zip(drawn_seen.features, real_seen.features, strict=True)
        ]
        return deceived, torch.stack(distances).mean()
