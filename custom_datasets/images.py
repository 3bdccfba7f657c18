"""Reads image files as RGB pixels, whatever their orientation, mode or colour profile."""

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import BinaryIO

import datasets
import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, features
from torchvision.transforms.v2 import functional as transforms

# Pillow's other decoders stay closed to unknown files. AVIF came with Pillow 11.3.
AVIF = ("AVIF",) if features.check("avif") else ()
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", *AVIF)
ENDINGS = tuple(
    ending for ending, form in Image.registered_extensions().items() if form in IMAGE_FORMATS
)
ImageFile = Path | BinaryIO  # a file on disk, or its content in memory


def image_file(pictures: datasets.Dataset, row: int) -> ImageFile:
    """The file of a picture. It is decoded by `to_rgb` wherever it lies.

    Args:
        pictures: with a column "image" of `datasets.Image(decode=False)`.
    """
    entry = pictures[row]["image"]
    return Path(entry["path"]) if entry["bytes"] is None else io.BytesIO(entry["bytes"])


def read_bytes(file: ImageFile) -> bytes:
    """The content of a picture's file.

    Raises:
        OSError: the disk or the drive does not give it, which tells nothing of the picture.
    """
    return file.read_bytes() if isinstance(file, Path) else file.read()


def stamp(pictures: datasets.Dataset) -> str:
    """A hash of paths, sizes and times of change: while it is the same, so are the files.

    It holds on this machine alone. The time of change of the entry counts too, which no program can
    set back.
    """
    arrow = [file["filename"] for file in pictures.cache_files]
    digest = hashlib.sha256(str(len(pictures)).encode())
    for path in arrow or [entry["path"] for entry in pictures["image"]]:
        about = os.stat(path) if os.path.exists(path) else None  # noqa: PTH110, PTH116
        facts = about and (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
        digest.update(f"{path}/{facts};".encode())
    return digest.hexdigest()[:16]


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
    if image.mode == "F":
        raise ValueError("its pixels are fractions of an unknown range: save it with 8 or 16 bits")
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
    if profile:
        # A profile that is damaged, or of another mode, is passed over.
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source, target = io.BytesIO(profile), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    return image.convert("RGB")


def open_rgb(file: ImageFile, min_side: int = 0) -> Image.Image:
    """The decoded picture.

    Args:
        min_side: pixels that are enough: JPEG is decoded at a fraction of its size, which is
            quicker. 0: all.

    Raises:
        OSError: see `read_bytes`.
        ValueError: it is not an image, is cut short, or is far too large.
    """
    content = io.BytesIO(read_bytes(file))
    try:
        with Image.open(content, formats=IMAGE_FORMATS) as image:
            if min_side:
                image.draft("RGB", (min_side, min_side))
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
        OSError, ValueError: see `open_rgb`; the message names the image.
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
