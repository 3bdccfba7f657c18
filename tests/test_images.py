"""Images as they come: whatever their mode, orientation or profile, the right RGB pixels."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from custom_datasets.images import read_image
from custom_datasets.screening import examine

SIDE = 48


def picture() -> Image.Image:
    """A smooth picture whose left and right, top and bottom, and channels all differ."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] * 255 / (SIDE - 1)
    return Image.fromarray(np.stack([x, y, 255 - x / 2], axis=-1).astype(np.uint8))


def assert_close(path: Path, want: Image.Image, tolerance: float = 3.0) -> None:
    got = read_image(path, SIDE).float()
    expected = torch.from_numpy(np.array(want.convert("RGB"))).permute(2, 0, 1).float()
    assert (got - expected).abs().mean() < tolerance


def test_pixels_of_an_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(tmp_path / "fractions.tif")
    with pytest.raises(ValueError, match=r"fractions\.tif"):  # 1.0 would be black
        read_image(tmp_path / "fractions.tif", 32)


@pytest.mark.parametrize(
    ("mode", "kind", "tolerance"), [("L", "JPEG", 3), ("CMYK", "JPEG", 6), ("P", "PNG", 6)]
)
def test_other_modes(tmp_path: Path, mode: str, kind: str, tolerance: float) -> None:
    """Whatever format the name of the file tells."""
    image = picture().quantize(256) if mode == "P" else picture().convert(mode)
    image.save(tmp_path / "1.jpg", kind, quality=98)
    assert_close(tmp_path / "1.jpg", image, tolerance)


def test_transparency_shows_white_not_what_lies_beneath(tmp_path: Path) -> None:
    image = picture().convert("RGBA")
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:, : SIDE // 2] = 0
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "1.png")
    got = read_image(tmp_path / "1.png", SIDE)
    assert (got[:, :, : SIDE // 2] == 255).all()
    right = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[:, :, SIDE // 2 :]
    assert torch.equal(got[:, :, SIDE // 2 :], right)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    grey = np.asarray(picture().convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "1.png")
    assert_close(tmp_path / "1.png", picture().convert("L"), 0.6)


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture().transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "1.jpg", quality=98, subsampling=0, exif=exif)
    assert_close(tmp_path / "1.jpg", picture())


def test_a_colour_profile_counts(tmp_path: Path) -> None:
    """Of one whose red and green are exchanged; a damaged one is passed over."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    before, red, between, green, after = re.split(b"(rXYZ|gXYZ)", profile)
    exchanged = b"".join((before, green, between, red, after))
    image = Image.new("RGB", (SIDE, SIDE), (180, 120, 90))
    for kept, expected in ((exchanged, [120, 180, 90]), (b"damaged", [180, 120, 90])):
        image.save(tmp_path / "1.png", icc_profile=kept)
        found = read_image(tmp_path / "1.png", SIDE)[:, 0, 0].numpy()
        assert np.abs(found - np.array(expected)).max() < 2


@pytest.mark.parametrize("size", [(90, 60), (20, 31)])
def test_another_shape_is_resized_and_cut_in_the_middle(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    picture().resize(size).save(tmp_path / "1.png")
    scaled = tuple(int(32 * side / min(size)) for side in size)
    left, top = (round((side - 32) / 2) for side in scaled)
    with Image.open(tmp_path / "1.png") as image:
        expected = image.resize(scaled, Image.Resampling.BILINEAR)
    expected = expected.crop((left, top, left + 32, top + 32))
    found = read_image(tmp_path / "1.png", 32)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))


def jpeg(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=98)
    return content.getvalue()


def test_what_cannot_be_decoded_is_found_beforehand_and_named(tmp_path: Path) -> None:
    whole = jpeg(picture())
    assert not examine(whole)
    assert not examine(whole + bytes(100))  # some writers leave a few bytes
    assert examine(jpeg(Image.new("RGB", (1, 1))))
    for content in (b"<html>quota exceeded</html>", whole[: len(whole) // 2]):
        assert examine(content)
        (tmp_path / "face.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=r"face\.jpg"):
            read_image(tmp_path / "face.jpg", SIDE)
