"""Images as they come: what can be converted is converted right, the rest is left out by name."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from custom_datasets import screening
from custom_datasets.celeba_files import ATTRIBUTE_FILE, ATTRIBUTES, IMAGE_FOLDER
from custom_datasets.celeba_hq_dataset import CelebAHQ, read_image
from custom_datasets.screening import COMPARED, examine, fingerprint, screen

SIDE = 48


def picture() -> Image.Image:
    """A smooth picture whose left and right, top and bottom, and channels all differ."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] * 255 / (SIDE - 1)
    return Image.fromarray(np.stack([x, y, 255 - x / 2], axis=-1).astype(np.uint8))


def assert_close(path: Path, want: Image.Image, tolerance: float = 3.0) -> None:
    got = read_image(path, SIDE).float()
    expected = torch.from_numpy(np.array(want.convert("RGB"))).permute(2, 0, 1).float()
    assert (got - expected).abs().mean() < tolerance


def test_greyscale_becomes_three_equal_channels(tmp_path: Path) -> None:
    picture().convert("L").save(tmp_path / "1.jpg", quality=98)
    assert_close(tmp_path / "1.jpg", picture().convert("L"))


def test_cmyk(tmp_path: Path) -> None:
    picture().convert("CMYK").save(tmp_path / "1.jpg", quality=98)
    assert_close(tmp_path / "1.jpg", picture(), 6)


def test_a_palette_and_a_file_whose_name_tells_another_format(tmp_path: Path) -> None:
    picture().quantize(256).save(tmp_path / "1.jpg", format="PNG")
    assert_close(tmp_path / "1.jpg", picture(), 6)


def test_transparency_shows_white_not_what_lies_beneath(tmp_path: Path) -> None:
    image = picture().convert("RGBA")
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:, : SIDE // 2] = 0
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "1.jpg", format="PNG")
    got = read_image(tmp_path / "1.jpg", SIDE)
    assert (got[:, :, : SIDE // 2] == 255).all()
    right = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[:, :, SIDE // 2 :]
    assert torch.equal(got[:, :, SIDE // 2 :], right)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    grey = np.asarray(picture().convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    deep.save(tmp_path / "1.jpg", format="PNG")
    assert_close(tmp_path / "1.jpg", picture().convert("L"), 0.6)


@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, tag: int) -> None:
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[tag]
    image = picture() if stored is None else picture().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = tag
    image.save(tmp_path / "1.jpg", quality=98, subsampling=0, exif=exif)
    assert_close(tmp_path / "1.jpg", picture())


def bomb(path: Path, side: int) -> None:
    """A PNG whose header promises side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def spoil(path: Path, how: str) -> None:
    """Put something unusable at this path."""
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "text":
        path.write_text("<html>quota exceeded</html>")
    elif how == "link":
        path.symlink_to(path.parent / "gone.jpg")
    elif how == "folder":
        path.mkdir()
    elif how == "tiny":
        Image.new("RGB", (1, 1)).save(path)
    elif how == "bomb":
        bomb(path, 20_000)
    elif how == "large":
        bomb(path, 10_000)  # Pillow itself only warns
    else:
        picture().save(path, format=how, quality=98)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WAYS = ("empty", "text", "link", "folder", "tiny", "bomb", "large", "JPEG", "PNG", "WEBP")


@pytest.mark.parametrize("how", WAYS)
def test_what_cannot_be_used_is_told_without_reading_its_pixels(tmp_path: Path, how: str) -> None:
    path = tmp_path / "1.jpg"
    picture().save(path)
    assert examine(path) is None
    spoil(path, how)
    assert examine(path)
    if how not in ("tiny", "large"):  # these open, and are refused for their size
        with pytest.raises(ValueError, match=r"cannot read the image .*1\.jpg"):
            read_image(path, SIDE)


def test_bytes_after_the_end_marker_do_no_harm(tmp_path: Path) -> None:
    picture().save(tmp_path / "1.jpg")
    with (tmp_path / "1.jpg").open("ab") as file:
        file.write(b"\0" * 100)
    assert examine(tmp_path / "1.jpg") is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"\0" * 5000, "not a JPEG, PNG or WebP"),
        (b"<html>quota exceeded</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
def test_the_reason_tells_what_lies_there(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "1.jpg").write_bytes(content)
    assert why in examine(tmp_path / "1.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_good_images_of_all_formats_pass(tmp_path: Path, kind: str) -> None:
    for options in ({}, {"lossless": True}) if kind == "WEBP" else ({},):
        picture().save(tmp_path / "1.jpg", kind, **options)
        assert examine(tmp_path / "1.jpg") is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """250 faces in a folder whose name has a space and letters beyond ASCII."""
    folder = tmp_path / "my façes"
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    for index in range(250):
        picture().save(folder / IMAGE_FOLDER / f"{index}.jpg")
    rows = [f"{i}.jpg  " + " ".join(["1", "-1"] * 20) for i in range(250)]
    text = "\r\n".join(["250", " ".join(ATTRIBUTES), *rows]) + "\r\n"
    (folder / ATTRIBUTE_FILE).write_bytes(b"\xef\xbb\xbf" + text.encode())
    return folder


def test_a_few_are_left_out_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    spoil(folder / IMAGE_FOLDER / "7.jpg", "text")
    spoil(folder / IMAGE_FOLDER / "200.jpg", "JPEG")
    faces = CelebAHQ(folder, None, SIDE)
    for _ in range(2):  # looked at, and then remembered
        kept = screen(faces, tmp_path / "records")
        assert len(kept) == 248 and not {7, 200} & set(kept.indices.tolist())
        assert kept[7].index == 8 and len(kept.attributes) == len(kept.splits) == 248
        said = capsys.readouterr().out
        assert "  7.jpg: " in said and "  200.jpg: " in said
    assert len(faces) == 250


def test_the_result_is_remembered_until_a_file_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = CelebAHQ(folder, None, SIDE)
    looked: list[Path] = []

    def spy(path: Path) -> str | None:
        looked.append(path)
        return examine(path)

    monkeypatch.setattr(screening, "examine", spy)
    for want in (250, 0):
        looked.clear()
        assert len(screen(faces, tmp_path / "records")) == 250
        assert len(looked) == want
    spoil(folder / IMAGE_FOLDER / "3.jpg", "empty")
    assert len(screen(faces, tmp_path / "records")) == 249


def test_more_than_a_small_share_stops(folder: Path, tmp_path: Path) -> None:
    for index, how in enumerate(("empty", "text", "link")):
        spoil(folder / IMAGE_FOLDER / f"{index}.jpg", how)
    with pytest.raises(ValueError, match=r"3 of 250 .*\n  0\.jpg: .*\n  1\.jpg: .*\n  2\.jpg: "):
        screen(CelebAHQ(folder, None, SIDE), tmp_path / "records")


def test_a_copy_is_known_whatever_its_place_and_times(folder: Path, tmp_path: Path) -> None:
    spoil(folder / IMAGE_FOLDER / "3.jpg", "link")
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied, symlinks=True, copy_function=shutil.copyfile)
    for path in (copied / IMAGE_FOLDER).iterdir():
        if not path.is_symlink():
            os.utime(path, (0, 0))
    here, there = CelebAHQ(folder, None, SIDE), CelebAHQ(copied, None, SIDE)
    assert fingerprint(here) == fingerprint(there)
    assert fingerprint(here) != fingerprint(here.without([0]))


def test_another_size_and_a_swapped_set_are_others(folder: Path) -> None:
    faces = CelebAHQ(folder, None, SIDE)
    before = fingerprint(faces)
    path = folder / IMAGE_FOLDER / "5.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    assert fingerprint(faces) != before
    path.write_bytes(whole)
    assert fingerprint(faces) == before
    for position in range(len(faces)):  # as many bytes, of another picture
        data = faces.path(position).read_bytes()
        faces.path(position).write_bytes(data[:-20] + bytes(18) + data[-2:])
    assert fingerprint(faces) != before


def test_the_folder_is_listed_once_and_only_the_ends_of_a_few_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = CelebAHQ(folder, None, SIDE)
    opened: list[Path] = []
    listed: list[Path] = []
    really_open, really_scan = Path.open, os.scandir

    def spy(path: Path, *args: object) -> object:
        opened.append(path)
        return really_open(path, *args)

    monkeypatch.setattr(Path, "open", spy)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: pytest.fail("a stat of its own"))
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or really_scan(path))
    fingerprint(faces)
    assert len(listed) == 1 and 0 < len(opened) <= 2 * COMPARED


@pytest.mark.parametrize(
    "torn", [b"", b"\0" * 100, b'{"7.jpg": ', b'["7.jpg"]', b'{"9999.jpg": ""}']
)
def test_a_torn_record_is_made_again_and_said(
    folder: Path, tmp_path: Path, torn: bytes, capsys: pytest.CaptureFixture
) -> None:
    spoil(folder / IMAGE_FOLDER / "7.jpg", "text")
    faces, records = CelebAHQ(folder, None, SIDE), tmp_path / "records"
    screen(faces, records)
    (record,) = records.glob("screened_*.json")
    good = record.read_bytes()
    record.write_bytes(torn)
    capsys.readouterr()
    for said in (1, 0):
        assert len(screen(faces, records)) == 249
        assert capsys.readouterr().out.count("is damaged") == said
    assert record.read_bytes() == good
