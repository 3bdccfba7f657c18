"""Images as they come: whatever their mode, orientation or profile, the right RGB pixels."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from custom_datasets.images import read_image
from custom_datasets.screening import examine

SIDE = 48
TO_XYZ = np.array(  # of Display P3, for D50
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
SRGB_TO_XYZ = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)


def picture() -> Image.Image:
    """A smooth picture whose left and right, top and bottom, and channels all differ."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] * 255 / (SIDE - 1)
    return Image.fromarray(np.stack([x, y, 255 - x / 2], axis=-1).astype(np.uint8))


def assert_close(path: Path, want: Image.Image, tolerance: float = 3.0) -> None:
    got = read_image(path, SIDE).float()
    expected = torch.from_numpy(np.array(want.convert("RGB"))).permute(2, 0, 1).float()
    assert (got - expected).abs().mean() < tolerance


@pytest.mark.parametrize(("mode", "tolerance"), [("L", 3), ("CMYK", 6)])
def test_other_modes(tmp_path: Path, mode: str, tolerance: float) -> None:
    image = picture().convert(mode)
    image.save(tmp_path / "1.jpg", quality=98)
    assert_close(tmp_path / "1.jpg", image, tolerance)


def test_a_palette_in_a_file_whose_name_tells_another_format(tmp_path: Path) -> None:
    picture().quantize(256).save(tmp_path / "1.jpg", format="PNG")
    assert_close(tmp_path / "1.jpg", picture(), 6)


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


@pytest.mark.parametrize(
    ("tag", "stored"), [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)]
)
def test_exif_rotation_is_undone(tmp_path: Path, tag: int, stored: Image.Transpose) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    picture().transpose(stored).save(tmp_path / "1.jpg", quality=98, subsampling=0, exif=exif)
    assert_close(tmp_path / "1.jpg", picture())


def profile() -> bytes:
    """A colour profile of Display P3's primaries with a gamma of 2.2."""

    def xyz(values: np.ndarray) -> bytes:
        fixed = np.round(np.asarray(values) * 65536).astype(int)
        return b"XYZ " + bytes(4) + struct.pack(">3i", *fixed)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    tags = {b"wtpt": xyz([0.9642, 1.0, 0.8249])}
    for column, name in enumerate((b"r", b"g", b"b")):
        tags |= {name + b"XYZ": xyz(TO_XYZ[:, column]), name + b"TRC": curve}
    tags |= {b"desc": b"desc" + bytes(4) + struct.pack(">I", 3) + b"P3\0" + bytes(79)}
    tags |= {b"cprt": b"text" + bytes(4) + b"none"}
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = at + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"", 0x02400000, b"mntr", b"RGB ", b"XYZ ",
                         bytes(12), b"acsp")  # fmt: skip
    header += bytes(68 - len(header)) + struct.pack(">3i", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + body


def test_a_colour_profile_counts(tmp_path: Path) -> None:
    """A photograph of a telephone: the same numbers mean stronger colours there."""
    stored = np.array([180, 120, 90])
    xyz = TO_XYZ @ (stored / 255) ** 2.2
    linear = np.linalg.inv(SRGB_TO_XYZ) @ xyz
    expected = 255 * np.where(linear > 0.0031, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert np.abs(expected - stored).max() > 8
    image = Image.new("RGB", (SIDE, SIDE), tuple(stored.tolist()))
    image.save(tmp_path / "1.png", icc_profile=profile())
    assert np.abs(read_image(tmp_path / "1.png", SIDE)[:, 0, 0].numpy() - expected).max() < 2
    image.save(tmp_path / "2.png", icc_profile=b"damaged")
    assert read_image(tmp_path / "2.png", SIDE)[:, 0, 0].tolist() == stored.tolist()


@pytest.mark.parametrize("size", [(90, 60), (61, 47), (20, 31)])
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


def bomb(path: Path) -> None:
    """A PNG whose header promises 20,000 x 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def wordy(path: Path) -> None:
    """A PNG with more text than Pillow takes, which it reads after the pixels."""
    text = zlib.compress(bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK))
    content = io.BytesIO()
    picture().save(content, "PNG")
    data = b"Comment\0\0" + text
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + data))
    path.write_bytes(content.getvalue()[:-12] + chunk + content.getvalue()[-12:])


def cut(path: Path) -> None:
    picture().save(path, "JPEG", quality=98)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS = {
    "empty": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "a web page": lambda path: path.write_text("<html>quota exceeded</html>"),
    "text": lambda path: path.write_text("not an image"),
    "bomb": bomb,
    "much text": wordy,
    "cut": cut,
    "another format": lambda path: picture().save(path, "PPM"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_decoded_is_found_beforehand_and_named(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "face.jpg"
    FAULTS[fault](path)
    assert examine(path.read_bytes())
    with pytest.raises(ValueError, match=r"face\.jpg"):
        read_image(path, SIDE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_good_images_pass(kind: str) -> None:
    content = io.BytesIO()
    picture().save(content, kind)
    assert not examine(content.getvalue())
    assert not examine(content.getvalue() + bytes(100))  # some writers leave a few bytes
    Image.new("RGB", (1, 1)).save(content := io.BytesIO(), kind)
    assert examine(content.getvalue())
