"""An opponent that tells drawn pictures from real ones, patch by patch, and is trained on the way.

Where latents leave detail open, a loss of pixels is least for the mean of all that it could be,
which is a blur. The discriminator starts from random weights and is thrown away: it is no network
that judges pictures later. PatchGAN of Isola et al. 2017, hinge loss of Miyato et al. 2018, weighed
as in VQGAN (Esser et al. 2021, equation 7).

It has to learn within minutes, or the decoder always evades it. So it is given the two finest bands
of the Laplacian pyramid beside the picture, as strong as the picture. From pixels alone it would
not tell the two apart for hundreds of steps: in a picture fine detail is faint.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.device import autocast
from pretraining.sharpness import laplacian_pyramid

WIDTH = 32  # channels of the first layer
FINE_GAIN, MIDDLE_GAIN = 8.0, 5.0  # bring the bands of faces to the strength of their pixels
BETAS = (0.5, 0.99)  # of Adam; a low first one, as the opponent's game keeps changing


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) -> one logit for each patch of 46 pixels, (B, 1, H/8 - 1, W/8 - 1)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(9, WIDTH, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in pairwise((WIDTH, 2 * WIDTH, 4 * WIDTH)):
            convolution = nn.Conv2d(before, after, 4, 2, 1, bias=False)
            layers += [convolution, nn.GroupNorm(after // 16, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * WIDTH, 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        fine, middle, _ = laplacian_pyramid(images, bands=3)
        middle = F.interpolate(middle, scale_factor=2)  # (B, 3, H, W)
        seen = torch.cat([images, FINE_GAIN * fine, MIDDLE_GAIN * middle], dim=1)  # (B, 9, H, W)
        return self.layers(seen).float()


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
