"""What every evaluation asks of its images, features and sample sizes before it computes."""

import torch
from torch import Tensor

FACE_TINT = 5.0  # levels of 255 by which red and blue must differ for their order to tell anything


class TooFewSamples(ValueError):
    """A number that so few samples cannot carry."""


def require_enough(n: int, least: int, what: str) -> None:
    """Refuse a number that would rest on fewer than `least` samples.

    Raises:
        TooFewSamples: n < least; names the number and both counts.
    """
    if n < least:
        raise TooFewSamples(
            f"{what} needs at least {least} samples, got {n}; raise the number or leave it out"
        )


def require_images(images: Tensor, name: str) -> None:
    """Refuse anything but a batch of uint8 RGB images (N, 3, H, W) in [0, 255].

    Args:
        name: what the batch is, for the message ("generated").

    Raises:
        TypeError: not a uint8 tensor.
        ValueError: wrong layout or channels, no image, or a float range that was cast unscaled.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"the {name} images are {kind}, evaluation takes uint8 in [0, 255]: from [0, 1] use "
            "(images * 255).round().to(torch.uint8)"
        )
    _require_layout(images, name)
    if not ((images > 1) & (images < 255)).any():
        raise ValueError(
            f"the {name} images hold no value between 2 and 254: a float range was cast to uint8 "
            "without scaling it to [0, 255] first"
        )


def _require_layout(images: Tensor, name: str) -> None:
    shape = tuple(images.shape)
    if images.ndim != 4:
        raise ValueError(f"the {name} images have shape {shape}, expected (N, 3, H, W)")
    if shape[1] != 3:
        last = "they are channels-last, use images.permute(0, 3, 1, 2)"
        count = f"they have {shape[1]} channels, convert them to RGB"
        raise ValueError(
            f"the {name} images have shape {shape}, expected (N, 3, H, W): "
            + (last if shape[3] == 3 else count)
        )
    if 0 in shape:
        raise ValueError(f"the {name} images have shape {shape}: there is nothing to evaluate")


def require_same_size(images: Tensor, reference: Tensor, name: str) -> None:
    """Refuse two sets of different height or width: a resize shifts every distance.

    Raises:
        ValueError: the sizes differ; names both.
    """
    if images.shape[-2:] != reference.shape[-2:]:
        raise ValueError(
            f"the {name} images are {tuple(images.shape[-2:])} pixels, the reference is "
            f"{tuple(reference.shape[-2:])}: bring both to one size in the same way"
        )


def require_same_channel_order(images: Tensor, reference: Tensor, name: str) -> None:
    """Refuse a set that looks like BGR next to an RGB reference.

    A heuristic: skin makes faces redder than blue on average. A set is refused if its mean red
    minus blue has the other sign than the reference's and at least half its size; where the
    reference is nearly grey (under `FACE_TINT` levels) nothing can be told and nothing is refused.

    Args:
        images, reference: uint8 (N, 3, H, W).

    Raises:
        ValueError: red and blue are likely swapped; gives both differences.
    """
    tint, expected = _red_minus_blue(images), _red_minus_blue(reference)
    opposite = tint * expected < 0 and abs(tint) > abs(expected) / 2
    if opposite and abs(expected) >= FACE_TINT:
        raise ValueError(
            f"red minus blue is {tint:+.1f} levels in the {name} images and {expected:+.1f} in the "
            "reference: red and blue are likely swapped (BGR), use images.flip(1)"
        )


def _red_minus_blue(images: Tensor) -> float:
    means = torch.stack([images[:, channel].double().mean() for channel in (0, 2)])
    return float(means[0] - means[1])


def require_features(features: Tensor, name: str, least: int = 2) -> Tensor:
    """Features as finite float64 (N, D) on the CPU.

    Raises:
        ValueError: not (N, D), or not finite.
        TooFewSamples: fewer than `least` rows.
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(
            f"the {name} features are {features.dtype} {tuple(features.shape)}, expected float "
            "(N, D)"
        )
    require_enough(len(features), least, f"a distance to or from the {name} features")
    features = features.detach().cpu().double()
    if not features.isfinite().all():
        raise ValueError(
            f"the {name} features are not finite: the network met images it cannot take, or it "
            "overflowed in half precision"
        )
    return features


def require_pair(a: Tensor, b: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of features of one width, checked as `require_features` does.

    Raises:
        ValueError: the widths differ, so that they come from different networks.
    """
    a, b = require_features(a, "first", least), require_features(b, "second", least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features of {a.shape[1]} and {b.shape[1]} dimensions: extract both sets with one "
            "network"
        )
    return a, b
