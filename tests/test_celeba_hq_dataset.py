"""The CelebA-HQ folder: opened as it is published, split as published, faults named."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    IMAGE_FOLDER,
    MAPPING_FILE,
    PARTITION_FILE,
    image_number,
    read_attributes,
)
from custom_datasets.celeba_hq_dataset import CelebAHQ, read_image, to_model_range
from custom_datasets.splits import ABOUT_FILE, official_split, write_about

INDICES = (0, 2, 7, 10)
ROWS = np.random.default_rng(0).random((len(INDICES), 40)) < 0.5


def attribute_lines() -> list[str]:
    """A good attribute file of four faces, as published: two spaces after the name."""
    rows = [
        f"{index}.jpg  " + " ".join("1" if value else "-1" for value in row)
        for index, row in zip(INDICES, ROWS, strict=True)
    ]
    return [str(len(rows)), " ".join(ATTRIBUTES), *rows]


def save_image(path: Path, seed: int, size: tuple[int, int] = (40, 40)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four faces in the official form, without mapping and partition."""
    (tmp_path / IMAGE_FOLDER).mkdir()
    for index in INDICES:
        save_image(tmp_path / IMAGE_FOLDER / f"{index}.jpg", index)
    (tmp_path / ATTRIBUTE_FILE).write_text("\n".join(attribute_lines()) + "\n")
    return tmp_path


def rewrite(folder: Path, edit: Callable[[list[str]], Sequence[str]]) -> None:
    path = folder / ATTRIBUTE_FILE
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")


def test_official_split_counts() -> None:
    split = official_split()
    assert split.shape == (30_000,)
    assert np.bincount(split).tolist() == [24_183, 2_993, 2_824]


def test_official_split_is_the_published_one(real_faces: Path) -> None:
    partition = dict(
        line.split() for line in (real_faces / PARTITION_FILE).read_text().splitlines()
    )
    mapping = [line.split() for line in (real_faces / MAPPING_FILE).read_text().splitlines()]
    published = {int(row[0]): int(partition[row[2]]) for row in mapping if row[0].isdigit()}
    assert sorted(published) == list(range(30_000))
    assert official_split().tolist() == [published[index] for index in range(30_000)]


def test_opens_the_real_folder(real_faces: Path) -> None:
    faces = CelebAHQ(real_faces, None, 256)
    assert np.bincount(faces.splits).tolist() == [8000, 1000, 1000]
    val = CelebAHQ(real_faces, "val", 256)
    assert val.indices.tolist() == faces.indices[faces.splits == 1].tolist()
    assert "10000 of 30000 images" in repr(faces)
    lines = (real_faces / ATTRIBUTE_FILE).read_text().splitlines()
    for position in (0, 4321, 9999):
        face = faces[position]
        name, *values = lines[2 + face.index].split()
        assert name == f"{face.index}.jpg"
        assert face.attributes.tolist() == [value == "1" for value in values]
        assert face.split == ("train", "val", "test")[official_split()[face.index]]
        assert face.image.shape == (3, 256, 256) and face.image.dtype == torch.uint8


def test_known_rows_of_the_real_file(real_faces: Path) -> None:
    rows = read_attributes(real_faces / ATTRIBUTE_FILE, image_number)
    assert len(rows) == 30_000
    shown = {name for name, value in zip(ATTRIBUTES, rows[0], strict=True) if value}
    assert shown == set(
        "Arched_Eyebrows Attractive Bags_Under_Eyes Big_Lips Brown_Hair Bushy_Eyebrows "
        "Heavy_Makeup High_Cheekbones Mouth_Slightly_Open No_Beard Pointy_Nose Smiling Wavy_Hair "
        "Wearing_Lipstick Young".split()
    )


def test_a_face_is_what_the_files_say(folder: Path) -> None:
    faces = CelebAHQ(folder, None, 40)
    assert faces.indices.tolist() == list(INDICES)  # numeric order, not 0, 10, 2, 7
    assert np.array_equal(faces.attributes, ROWS)
    for position, index in enumerate(INDICES):
        face = faces[position]
        assert face.index == index
        assert faces.path(position) == folder / IMAGE_FOLDER / f"{index}.jpg"
        pixels = np.asarray(Image.open(folder / IMAGE_FOLDER / f"{index}.jpg"))
        assert face.image.dtype == torch.uint8
        assert np.array_equal(face.image.permute(1, 2, 0).numpy(), pixels)
        assert np.array_equal(face.attributes, ROWS[position])


def test_without_its_own_files_a_folder_has_the_official_split(folder: Path) -> None:
    official = {index: ("train", "val", "test")[official_split()[index]] for index in INDICES}
    assert set(official.values()) == {"train", "val", "test"}
    assert {face.index: face.split for face in CelebAHQ(folder, None, 40)} == official
    for split in set(official.values()):
        chosen = CelebAHQ(folder, split, 40)
        assert chosen.indices.tolist() == [i for i in INDICES if official[i] == split]
        assert np.array_equal(chosen.attributes, ROWS[[INDICES.index(i) for i in chosen.indices]])


@pytest.mark.parametrize("header", ["", "idx orig_idx orig_file\n"])
def test_a_folder_with_its_own_files_is_split_by_them(folder: Path, header: str) -> None:
    rows = [f"{index}   {index}   {number:06d}.jpg" for number, index in enumerate(INDICES)]
    (folder / MAPPING_FILE).write_text(header + "\n".join(rows))
    (folder / PARTITION_FILE).write_text("000000.jpg 2\n000001.jpg 1\n000002.jpg 0\n000003.jpg 1\n")
    faces = CelebAHQ(folder, None, 40)
    assert [face.split for face in faces] == ["test", "val", "train", "val"]
    assert CelebAHQ(folder, "val", 40).indices.tolist() == [2, 10]


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (61, 47), (20, 31)])
def test_another_shape_is_resized_and_cut_in_the_middle(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    save_image(tmp_path / "1.jpg", 3, size)
    short = min(size)
    scaled = tuple(int(32 * side / short) for side in size)
    left, top = (round((side - 32) / 2) for side in scaled)
    with Image.open(tmp_path / "1.jpg") as image:
        expected = image.resize(scaled, Image.Resampling.BILINEAR).crop(
            (left, top, left + 32, top + 32)
        )
    image = read_image(tmp_path / "1.jpg", 32)
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png", 32).numpy(), np.stack([grey] * 3))
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png", 32).shape == (3, 32, 32)


def test_to_model_range() -> None:
    levels = to_model_range(torch.arange(256, dtype=torch.uint8))
    assert levels.dtype == torch.float32
    assert levels[0] == -1 and levels[255] == 1
    torch.testing.assert_close(levels, torch.linspace(-1, 1, 256))


def test_loads_in_worker_processes(drawn_folder: Path) -> None:
    faces = CelebAHQ(drawn_folder, "val", 32)
    loader = DataLoader(faces, batch_size=None, num_workers=1)
    assert [face.index for face in loader] == [face.index for face in faces]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace(" ", "  "),
        lambda text: text.replace("  ", " "),
        lambda text: text.replace("\n", " \n") + "\n\n",
    ],
    ids=["bom", "crlf", "no last newline", "double spaces", "single spaces", "blank ends"],
)
def test_other_hands_layout_of_the_attribute_file_is_accepted(
    folder: Path, change: Callable[[str], str]
) -> None:
    path = folder / ATTRIBUTE_FILE
    path.write_bytes(change(path.read_text()).encode())
    rows = read_attributes(path, image_number)
    assert list(rows) == list(INDICES)
    assert np.array_equal(np.stack(list(rows.values())), ROWS)


def test_other_files_among_the_images_are_passed_over(folder: Path) -> None:
    (folder / IMAGE_FOLDER / "Thumbs.db").write_text("")
    (folder / IMAGE_FOLDER / "._0.jpg").write_text("")
    (folder / IMAGE_FOLDER / "readme.jpg").write_text("")
    assert CelebAHQ(folder, None, 40).indices.tolist() == list(INDICES)


@pytest.mark.parametrize("extension", ["png", "JPG", "jpeg", "webp", "WebP"])
@pytest.mark.parametrize("name", ["{}", "{:05d}"])
def test_other_extensions_and_leading_zeros(folder: Path, name: str, extension: str) -> None:
    images = folder / IMAGE_FOLDER
    expected = {}
    for index in INDICES:
        with Image.open(images / f"{index}.jpg") as image:
            path = images / f"{name.format(index)}.{extension}"
            image.save(images / "saved", Image.registered_extensions()[f".{extension.lower()}"])
        (images / f"{index}.jpg").unlink()
        (images / "saved").rename(path)
        expected[index] = path
    faces = CelebAHQ(folder, None, 40)
    assert faces.indices.tolist() == list(INDICES)
    assert np.array_equal(faces.attributes, ROWS)
    for position, index in enumerate(INDICES):
        assert faces.path(position) == expected[index]
        pixels = np.asarray(Image.open(expected[index]))
        assert np.array_equal(faces[position].image.permute(1, 2, 0).numpy(), pixels)
    assert faces.without([0]).path(0) == expected[INDICES[1]]


def test_two_files_of_one_index_are_named(folder: Path) -> None:
    save_image(folder / IMAGE_FOLDER / "00007.png", 1)
    with pytest.raises(ValueError, match=r"00007\.png and 7\.jpg have one index"):
        CelebAHQ(folder, None, 40)


def test_decoders_of_other_formats_stay_closed(tmp_path: Path) -> None:
    for kind in ("BMP", "TIFF", "GIF"):
        Image.new("RGB", (40, 40)).save(tmp_path / "1.jpg", kind)
        with pytest.raises(ValueError, match=r"cannot read the image .*1\.jpg"):
            read_image(tmp_path / "1.jpg", 40)


@pytest.mark.parametrize("name", [IMAGE_FOLDER, ATTRIBUTE_FILE])
def test_a_missing_part_is_named(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=name) as caught:
        CelebAHQ(folder, None, 40)
    other = {IMAGE_FOLDER: ATTRIBUTE_FILE, ATTRIBUTE_FILE: IMAGE_FOLDER}[name]
    assert other not in str(caught.value)
    assert str(folder) in str(caught.value) and "CELEBA_HQ_DIR" in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CelebAHQ(tmp_path / "nowhere", "train", 40)


def test_an_unknown_split_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="'training': choose one of train, val, test"):
        CelebAHQ(folder, "training", 40)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [lines[0], lines[1].replace("Bald", "Bold"), *lines[2:]], "line 2"),
        (lambda lines: [lines[0], lines[1].rsplit(" ", 1)[0], *lines[2:]], "line 2"),
        (lambda lines: [lines[0], *lines[2:]], "line 2"),
        (lambda lines: lines[:1], "line 2"),
        (lambda lines: ["5", *lines[1:]], "announces '5' rows, 4 follow"),
        (lambda lines: ["four", *lines[1:]], "announces 'four' rows, 4 follow"),
        (lambda lines: lines[:-1], "announces '4' rows, 3 follow"),
        (lambda lines: [*lines[:4], lines[4].rsplit(" ", 1)[0], lines[5]], r":5: .*'7\.jpg"),
        (lambda lines: [*lines[:4], lines[4] + " 1", lines[5]], r":5: .*'7\.jpg"),
        (
            lambda lines: [*lines[:3], lines[3].rsplit(" ", 1)[0] + " 0", *lines[4:]],
            r":4: .*'2\.jpg",
        ),
        (lambda lines: [*lines[:5], lines[5].replace("10.jpg", "ten.jpg")], r":6: .*'ten\.jpg"),
        (lambda lines: [*lines[:5], lines[2]], r":6: a second row for 0\.jpg"),
    ],
    ids=[
        "another name",
        "39 names",
        "no header",
        "count alone",
        "count too high",
        "count no number",
        "row lost",
        "39 values",
        "41 values",
        "value 0",
        "no number",
        "second row",
    ],
)
def test_a_fault_in_the_attribute_file_is_located(
    folder: Path, edit: Callable[[list[str]], Sequence[str]], message: str
) -> None:
    rewrite(folder, edit)
    with pytest.raises(ValueError, match=message) as caught:
        CelebAHQ(folder, None, 40)
    assert str(folder / ATTRIBUTE_FILE) in str(caught.value)


def test_an_image_without_a_row_is_named(folder: Path) -> None:
    save_image(folder / IMAGE_FOLDER / "11.jpg", 0)
    with pytest.raises(ValueError, match=r"1 of 5 images have no row in .*11\.jpg"):
        CelebAHQ(folder, None, 40)


def test_a_folder_without_an_image_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / IMAGE_FOLDER)
    (folder / IMAGE_FOLDER).mkdir()
    with pytest.raises(ValueError, match=r"holds no <index>\.jpg"):
        CelebAHQ(folder, None, 40)
    (folder / IMAGE_FOLDER / "face-a.jpg").touch()
    with pytest.raises(ValueError, match=r"holds no <index>\.jpg.* it holds face-a\.jpg"):
        CelebAHQ(folder, None, 40)


def test_a_split_without_a_face_is_named(folder: Path) -> None:
    assert official_split()[list(INDICES)].tolist() == [0, 2, 1, 0]
    (folder / IMAGE_FOLDER / "7.jpg").unlink()
    with pytest.raises(ValueError, match="none of its 3 images belongs to the split 'val'"):
        CelebAHQ(folder, "val", 40)


def test_a_face_without_a_split_is_named(folder: Path) -> None:
    rows = [f"{index} {index} {index:06d}.jpg" for index in INDICES]
    partition = [f"{index:06d}.jpg 0" for index in INDICES]
    (folder / MAPPING_FILE).write_text("\n".join(rows[:-1]))
    (folder / PARTITION_FILE).write_text("\n".join(partition))
    with pytest.raises(
        ValueError, match=rf"{MAPPING_FILE} has no row for 1 images, e\.g\. 10\.jpg"
    ):
        CelebAHQ(folder, None, 40)
    (folder / MAPPING_FILE).write_text("\n".join(rows))
    (folder / PARTITION_FILE).write_text("\n".join(partition[1:]))
    with pytest.raises(ValueError, match=rf"{PARTITION_FILE} has no row for 000000\.jpg"):
        CelebAHQ(folder, None, 40)


def test_an_index_beyond_the_official_ones_is_named(folder: Path) -> None:
    save_image(folder / IMAGE_FOLDER / "30000.jpg", 0)
    rewrite(folder, lambda lines: ["5", *lines[1:], lines[-1].replace("10.jpg", "30000.jpg")])
    with pytest.raises(ValueError, match=r"30000\.jpg is not one of"):
        CelebAHQ(folder, None, 40)


@pytest.mark.parametrize("fault", ["text", "truncated", "empty", "gone"])
def test_an_unreadable_image_is_named(folder: Path, fault: str) -> None:
    faces = CelebAHQ(folder, None, 40)
    path = faces.path(2)
    whole = path.read_bytes()
    path.write_bytes({"text": b"not found", "truncated": whole[: len(whole) // 2]}.get(fault, b""))
    if fault == "gone":
        path.unlink()
    with pytest.raises(ValueError, match=r"cannot read the image .*7\.jpg"):
        faces[2]
    assert faces[1].index == 2


# --- the images as a sequence ---


def test_images_are_read_when_they_are_asked_for(folder: Path) -> None:
    faces = CelebAHQ(folder, None, 32)
    images, all_images = faces.images(workers=2), faces.all_images()
    assert len(images) == 4 and all_images.shape == (4, 3, 32, 32)
    assert all_images.dtype == torch.uint8
    assert all(torch.equal(all_images[i], faces[i].image) for i in range(4))
    chosen = ([2, 0], np.array([3, 3, 1]), slice(1, 3), slice(None, None, -1), [True, False] * 2)
    for which in chosen:
        assert torch.equal(images[which], torch.from_numpy(all_images.numpy()[which].copy()))
    assert torch.equal(images[-1], all_images[3]) and images[[]].shape == (0, 3, 32, 32)
    assert len(list(images)) == 4
    faces.path(3).unlink()
    assert torch.equal(images[:3], all_images[:3])
    for which in (3, [0, 3]):
        with pytest.raises(ValueError, match=r"cannot read the image .*10\.jpg"):
            images[which]
    with pytest.raises(IndexError):
        images[4]


def test_the_images_of_some_faces_are_theirs(folder: Path) -> None:
    faces = CelebAHQ(folder, None, 32)
    assert torch.equal(faces.without([1]).images()[:], faces.all_images()[[0, 2, 3]])


# --- the kind of split ---


def test_the_official_folder_is_split_by_identity(real_faces: Path) -> None:
    assert CelebAHQ(real_faces, "val", 40).split_kind == "identity"


def test_the_kind_of_split(folder: Path) -> None:
    assert CelebAHQ(folder, None, 40).split_kind == "identity"  # the official one, by index
    rows = [f"{index} {index} {number + 1:06d}.jpg" for number, index in enumerate(INDICES)]
    (folder / MAPPING_FILE).write_text("\n".join(rows))
    names = [row.split()[2] for row in rows]
    (folder / PARTITION_FILE).write_text("\n".join(f"{name} 0" for name in names))
    assert CelebAHQ(folder, None, 40).split_kind == "identity"
    (folder / PARTITION_FILE).write_text(
        "\n".join(f"{name} {i % 3}" for i, name in enumerate(names))
    )
    assert CelebAHQ(folder, None, 40).split_kind == "own"
    write_about(folder, "chance")
    assert CelebAHQ(folder, None, 40).split_kind == "chance"


@pytest.mark.parametrize("torn", ["", "{", "[]", "{}", '{"split_kind": "luck"}'])
def test_a_torn_kind_of_split_is_named_and_stops_nothing_else(folder: Path, torn: str) -> None:
    (folder / ABOUT_FILE).write_text(torn)
    faces = CelebAHQ(folder, None, 40)
    assert len(faces) == 4
    with pytest.raises(ValueError, match=ABOUT_FILE):
        _ = faces.split_kind
