"""Opponents that tell drawn pictures from real ones, patch by patch, and are trained on the way.

Where latents leave detail open, a loss of pixels is least for the mean of all that it could be,
which is a blur. So discriminators look at the pictures, and the decoder has to deceive them (hinge
loss, Miyato et al. 2018). They start from random weights and are thrown away: they are no networks
that judge pictures later.

They have to learn within minutes, so they see no pixels but the features of `Perception`, mixed
across channels and sizes by fixed random convolutions, which keep a discriminator from looking at
a few features only (Sauer et al. 2021, "Projected GANs Converge Faster").

Shapes: B batch, c channels, h x w features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.device import autocast
from pretraining.perception import CHANNELS

MIXED, WIDTH = 64, 128  # channels of mixed features, and of the discriminators
BETAS = (0.0, 0.99)  # of Adam; a low first one, as the opponents' game keeps changing
EPSILON = 1e-6


class Mixing(nn.Module):
    """Fixed random convolutions: each size's features, with those of the smaller sizes added."""

    def __init__(self) -> None:
        super().__init__()
        self.across_channels = nn.ModuleList(nn.Conv2d(count, MIXED, 1) for count in CHANNELS)
        self.across_sizes = nn.ModuleList(nn.Conv2d(MIXED, MIXED, 3, 1, 1) for _ in CHANNELS)
        for convolution in (*self.across_channels, *self.across_sizes):
            nn.init.kaiming_normal_(convolution.weight)
            nn.init.zeros_(convolution.bias)
        self.requires_grad_(False)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features (B, c, h, w) of several sizes, largest first -> (B, MIXED, h, w) of each."""
        mixed: list[Tensor] = []
        layers = zip(features, self.across_channels, self.across_sizes, strict=True)
        for seen, across_channels, across_sizes in reversed(list(layers)):
            strength = seen.float().square().mean((1, 2, 3), keepdim=True) + EPSILON
            found = across_channels(seen / strength.sqrt())
            if mixed:
                above = F.interpolate(mixed[-1], found.shape[-2:], mode="bilinear")
                found = (found + above) * 0.5**0.5  # as strong as each of the two
            mixed.append(across_sizes(found))
        return mixed[::-1]


def _discriminator(stride: int) -> nn.Sequential:
    """Mixed features (B, MIXED, h, w) -> logits of patches: positive is real."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(MIXED, WIDTH, 3, stride, 1)),
        *(nn.GroupNorm(8, WIDTH), nn.LeakyReLU(0.2)),
        spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)),
        *(nn.GroupNorm(8, WIDTH), nn.LeakyReLU(0.2)),
        spectral_norm(nn.Conv2d(WIDTH, 1, 1)),
    )


class Adversary:
    """One discriminator for each size of features, with their optimiser.

    Args:
        precision: autocast precision, see `models.device.choose_precision`.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self.mixing = Mixing().to(device, memory_format=torch.channels_last)
        # The largest features, whose patches overlap most, are judged at every second place.
        strides = (2, 2, 2, 1, 1)
        networks = nn.ModuleList(_discriminator(stride) for stride in strides)
        self.networks = networks.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), betas=BETAS)
        self.precision = precision

    def judge(self, features: list[Tensor]) -> list[Tensor]:
        """Logits (B, 1, h, w) of pictures whose features these are, from each discriminator."""
        with autocast(self.precision, features[0].device):
            pairs = zip(self.networks, self.mixing(features), strict=True)
            return [network(mixed).float() for network, mixed in pairs]

    def learn(self, real: list[Tensor], drawn: list[Tensor], learning_rate: float) -> Tensor:
        """One step towards telling the two apart; returns the hinge loss, 1 where they cannot."""
        self.networks.requires_grad_(True)
        others = self.judge([features.detach() for features in drawn])
        margins = [1 - logits for logits in self.judge(real)] + [1 + logits for logits in others]
        loss = torch.stack([F.relu(margin).mean() for margin in margins]).mean()
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.networks.requires_grad_(False)
        return loss.detach()

    def loss(self, drawn: list[Tensor]) -> Tensor:
        """How little the drawn pictures look real."""
        return -torch.stack([logits.mean() for logits in self.judge(drawn)]).mean()
