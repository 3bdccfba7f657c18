"""What a network that was trained on photographs sees in pictures: EfficientNet-Lite1's features.

Two losses of a decoder look through it (`perceptual_distance` and `adversary.Adversary`). It judges
no picture: the evaluation has EfficientNet-Lite0, a smaller network with other weights. The two
were trained on the same photographs, though, so a distance in Lite0's features may flatter a
decoder that Lite1 has taught. The judge's features, of a network that saw faces only, do not.
"""

import torch
from torch import Tensor, nn

from models.efficientnet import open_efficientnet_lite

# Blocks of EfficientNet-Lite1 whose features are given, the last of each size of the picture, from
# half of it to 1/32, and their channels.
TAPS = (0, 3, 6, 14, 20)
CHANNELS = (16, 24, 40, 112, 320)


class Perception(nn.Module):
    """The frozen network: pictures (B, 3, H, W) in [-1, 1] -> features (B, c, H/2^i, W/2^i), i from
    1 to 5.

    Raises:
        ImportError: one of its two packages is not installed; names both.
    """

    def __init__(self) -> None:
        super().__init__()
        network = open_efficientnet_lite(1)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(network._blocks)
        self.eval()

    def train(self, mode: bool = True) -> "Perception":
        """Stay in evaluation mode even if a parent module trains."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """See the class."""
        features, seen = self.stem(pictures), []
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in TAPS:
                seen.append(features)
        return seen


def perceptual_distance(drawn: list[Tensor], real: list[Tensor]) -> Tensor:
    """Squared distance of features whose channels have unit length, summed over the layers (Zhang
    et al. 2018, LPIPS, without weights for the channels).
    """
    pairs = zip(drawn, real, strict=True)
    distances = [(_unit(mine) - _unit(wanted)).square().sum(1).mean() for mine, wanted in pairs]
    return torch.stack(distances).sum()


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + 1e-3).sqrt()
