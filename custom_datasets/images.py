"""Reads image files as RGB pixels, whatever their orientation, mode or colour profile."""

import io
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, features
from torchvision.transforms.v2 import functional as transforms

# Pillow's other decoders stay closed to unknown files. AVIF came with Pillow 11.3.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", *(["AVIF"] * features.check("avif")))
ImageFile = Path | BinaryIO  # a file on disk, or its content in memory


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` (antialiased) and cut the middle square out."""
    if image.size != (size, size):
        image = transforms.center_crop(transforms.resize(image, [size], antialias=True), [size])
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as sRGB: upright by its EXIF tag, transparency over white, 16 bits scaled to 8,
    colours by the embedded profile.

    Pillow's own conversion ignores tag and profile, shows the colours that transparency hides, and
    clips 16-bit values to white.
    """
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64) / 257  # 65,535 becomes 255
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    to_srgb = _transform(profile, image.mode) if profile else None
    return ImageCms.applyTransform(image, to_srgb) if to_srgb else image.convert("RGB")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a colour profile to sRGB; None where the profile is damaged or is of another mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def open_rgb(file: ImageFile, least_side: int = 0) -> Image.Image:
    """The decoded picture.

    Args:
        least_side: pixels that are enough: JPEG is decoded at a fraction of its size, which is
            quicker. 0: all.

    Raises:
        ValueError: it is not an image, is cut short, or is far too large.
    """
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            if least_side:
                image.draft("RGB", (least_side, least_side))
            return to_rgb(image)
    # A damaged file makes Pillow's decoders raise almost anything: OSError, ValueError ("too much
    # text"), SyntaxError, struct.error, zlib.error. Whatever it is, this file is the cause.
    except Exception as error:
        raise ValueError(str(error)) from error


def read_image(file: ImageFile, size: int, name: str | None = None) -> torch.Tensor:
    """Read one image of any size as uint8 RGB (3, size, size).

    Args:
        name: of the image, for the message; None: `file`.

    Raises:
        ValueError: see `open_rgb`; the message names the image.
    """
    try:
        return transforms.pil_to_tensor(resize_and_crop(open_rgb(file), size))
    except ValueError as error:
        raise ValueError(
            f"cannot read the image {name or file}: {error}. Remove it or download it again."
        ) from error


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 [0, 255] -> float [-1, 1], the range that the autoencoders were trained on."""
    return images.float() / 127.5 - 1
