"""An opponent that tells drawn pictures from real ones, patch by patch, and is trained on the way.

Where latents leave detail open, a loss of pixels is least for the mean of all that it could be,
which is a blur. The discriminator starts from random weights and is thrown away: it is no network
that judges pictures later. PatchGAN of Isola et al. 2017, spectral normalisation and hinge loss of
Miyato et al. 2018, weighed as in VQGAN (Esser et al. 2021, equation 7).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.device import autocast

WIDTH = 64  # channels of the first layer
BETAS = (0.5, 0.99)  # of Adam; a low first one, as the opponent's game keeps changing


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) -> one logit for each patch of 46 pixels, (B, 1, H/8 - 1, W/8 - 1)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in pairwise((3, WIDTH, 2 * WIDTH, 4 * WIDTH)):
            layers += [spectral_norm(nn.Conv2d(*channels, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(4 * WIDTH, 1, 4, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.layers(images).float()


class Adversary:
    """The discriminator with its optimiser.

    Args:
        precision: autocast precision, see `models.device.choose_precision`.
    """

    def __init__(self, learning_rate: float, device: torch.device, precision: str) -> None:
        self.network = PatchDiscriminator().to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), learning_rate, betas=BETAS)
        self.precision = precision

    def judge(self, images: Tensor) -> Tensor:
        """Logits, positive where patches look real."""
        with autocast(self.precision, images.device):
            return self.network(images)

    def learn(self, real: Tensor, drawn: Tensor, learning_rate: float) -> float:
        """One step towards telling the two apart; returns the hinge loss, 1 where it cannot."""
        self.optimizer.param_groups[0]["lr"] = learning_rate
        loss = F.relu(1 - self.judge(real)).mean() + F.relu(1 + self.judge(drawn)).mean()
        self.optimizer.zero_grad()
        (loss / 2).backward()
        self.optimizer.step()
        return loss.item() / 2

    def gradient(self, drawn: Tensor) -> Tensor:
        """How to change pictures, (B, 3, H, W), so that they look less real: to be descended."""
        drawn = drawn.detach().requires_grad_(True)
        return torch.autograd.grad(-self.judge(drawn).mean(), drawn)[0]


def balance(drawn: Tensor, last: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """The factor of `theirs` at which both gradients move the decoder's last layer as much, ().

    Args:
        drawn: pictures with their graph, which stays.
        last: weights of the last layer.
        ours, theirs: gradients of two losses by the pictures.
    """
    norms = [
        torch.autograd.grad(drawn, last, gradient, retain_graph=True)[0].norm()
        for gradient in (ours, theirs)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
