"""Discriminators that tell decoded pictures from real ones, and the features that they see.

Where latents leave detail open, a loss of pixels is lowest for the mean of all that it could be,
which is a blur. So discriminators, which start from random weights, judge patches, and the decoder
has to deceive them (hinge loss, Miyato et al. 2018). To learn within minutes they see no pixels but
the features of `Perception`, mixed by fixed random convolutions, which keep a discriminator from
looking at a few features only (Sauer et al. 2021, "Projected GANs Converge Faster").

Shapes: B batch, c channels, h x w features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.device import autocast
from models.efficientnet import open_efficientnet_lite

# Blocks of EfficientNet-Lite1 whose features are given, the last of each size of the picture, from
# half of it to 1/32, and their channels.
TAPS = (0, 3, 6, 14, 20)
CHANNELS = (16, 24, 40, 112, 320)
MIXED, WIDTH = 64, 128  # channels of mixed features, and of the discriminators
# The largest features, whose patches overlap most, are judged at every second position.
STRIDES = (2, 2, 2, 1, 1)
BETAS = (0.0, 0.99)  # of Adam; a low first one, as the opponents' game keeps changing


class Perception(nn.Module):
    """What a network that was trained on photographs sees: the frozen EfficientNet-Lite1.

    Two losses look through it. It measures no picture: the evaluation has EfficientNet-Lite0, with
    other weights from the same photographs, whose distances may flatter a decoder that Lite1 has
    taught. The judge's features, of a network that saw faces only, do not.

    Raises:
        ImportError: one of its two packages is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        network = open_efficientnet_lite(1)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(network._blocks)
        self.eval()

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> features (B, c, H/2^i, W/2^i), i from 1 to 5."""
        features, seen = self.stem(pictures), []
        for number, block in enumerate(self.blocks):
            features = block(features)
            if number in TAPS:
                seen.append(features)
        return seen


def perceptual_distance(decoded: list[Tensor], real: list[Tensor]) -> Tensor:
    """Squared distance of features whose channels have unit length, summed over the layers (Zhang
    et al. 2018, LPIPS, without weights for the channels).
    """
    pairs = zip(decoded, real, strict=True)
    return torch.stack([(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in pairs]).sum()


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + 1e-3).sqrt()


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
            strength = seen.float().square().mean((1, 2, 3), keepdim=True) + 1e-6
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
        networks = nn.ModuleList(map(_discriminator, STRIDES))
        self.networks = networks.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), betas=BETAS)
        self.precision = precision

    def judge(self, features: list[Tensor]) -> list[Tensor]:
        """Logits (B, 1, h, w) from each discriminator of pictures with these features."""
        with autocast(self.precision, features[0].device):
            pairs = zip(self.networks, self.mixing(features), strict=True)
            return [network(mixed).float() for network, mixed in pairs]

    def learn(self, real: list[Tensor], decoded: list[Tensor], learning_rate: float) -> Tensor:
        """One step towards telling the two apart; returns the hinge loss, 1 where they cannot."""
        self.networks.requires_grad_(True)
        others = self.judge([features.detach() for features in decoded])
        margins = [1 - logits for logits in self.judge(real)] + [1 + logits for logits in others]
        loss = torch.stack([F.relu(margin).mean() for margin in margins]).mean()
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.networks.requires_grad_(False)
        return loss.detach()

    def loss(self, decoded: list[Tensor]) -> Tensor:
        """How little the decoded pictures look real."""
        return -torch.stack([logits.mean() for logits in self.judge(decoded)]).mean()
