"""Copies of CelebA-HQ in every form, made small, come out as one; wrong ones are refused."""

import csv
import errno
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pillow

import files
from custom_datasets import importing, official_folder
from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    IMAGE_FOLDER,
    MAPPING_FILE,
    PARTITION_FILE,
    image_number,
    read_attributes,
)
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.importing import describe_folder, import_copy, import_rows
from custom_datasets.parquet import as_attributes
from custom_datasets.sources import Row
from custom_datasets.splits import ABOUT_FILE, official_split, split_by_chance

ROOT = Path(__file__).resolve().parents[1]

MALE = ATTRIBUTES.index("Male")
# CelebA's file names of the faces: of the train, validation and test part of CelebA.
NUMBERS = [5, 162_770, 162_771, 182_637, 182_638, 202_599, 17, 18]


@pytest.fixture(scope="module")
def faces(drawn_folder: Path) -> CelebAHQ:
    return CelebAHQ(drawn_folder, "train", 64)


@pytest.fixture
def lists(faces: CelebAHQ, tmp_path: Path) -> tuple[Path, Path]:
    """`list_attr_celeba.txt` and the mapping of the first eight faces."""
    rows = [
        f"{number:06d}.jpg " + " ".join("1" if v else "-1" for v in faces.attributes[i])
        for i, number in enumerate(NUMBERS)
    ]
    attributes = tmp_path / "lists" / "list_attr_celeba.txt"
    attributes.parent.mkdir()
    attributes.write_text("\n".join([str(len(rows)), " ".join(ATTRIBUTES), *rows]) + "\n")
    mapping = tmp_path / "lists" / MAPPING_FILE
    lines = [f"{i + 100}  {number - 1}  {number:06d}.jpg" for i, number in enumerate(NUMBERS)]
    mapping.write_text("\n".join(["idx  orig_idx  orig_file", *lines]) + "\n")
    return attributes, mapping


def stargan(faces: CelebAHQ, folder: Path) -> Path:
    for i, number in enumerate(NUMBERS):
        sex = "male" if faces.attributes[i, MALE] else "female"
        place = folder / ("val" if i % 4 == 0 else "train") / sex
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06d}.jpg").write_bytes(faces.path(i).read_bytes())
    return folder


def plain(faces: CelebAHQ, folder: Path, name: str, first: int = 100) -> Path:
    folder.mkdir()
    for i in range(len(NUMBERS)):
        (folder / name.format(i + first)).write_bytes(faces.path(i).read_bytes())
    return folder


def parquet(faces: CelebAHQ, folder: Path, form: str) -> Path:
    count = len(NUMBERS)
    columns: dict[str, list] = {"image": [str(faces.path(i)) for i in range(count)]}
    features: dict[str, object] = {"image": Image()}
    if form == "list":
        columns["attributes"] = [row.astype(int).tolist() for row in faces.attributes[:count]]
        features["attributes"] = Sequence(Value("int64"))
    elif form != "none":
        for i, name in enumerate(ATTRIBUTES):
            values = faces.attributes[:count, i]
            columns[name] = (values if form == "bool" else values * 2 - 1).tolist()
            features[name] = Value("bool" if form == "bool" else "int64")
        if form == "named":
            columns["image_id"] = [f"{number:06d}.jpg" for number in NUMBERS]
            features["image_id"] = Value("string")
    else:
        columns["text"], features["text"] = ["a photography of a face"] * count, Value("string")
    (folder / "data").mkdir(parents=True)
    Dataset.from_dict(columns, Features(features)).to_parquet(folder / "data" / "train-0.parquet")
    return folder


def by_attributes(folder: Path) -> dict[bytes, tuple[str, np.ndarray]]:
    """Of every face, found by its attributes: the split and the picture."""
    opened = CelebAHQ(folder, None, 64)
    found = (opened[i] for i in range(len(opened)))
    return {face.attributes.tobytes(): (face.split, face.image.numpy()) for face in found}


def assert_same_faces(faces: CelebAHQ, out: Path, tolerance: float) -> dict[bytes, str]:
    found = by_attributes(out)
    assert len(found) == len(NUMBERS)
    for i in range(len(NUMBERS)):
        image = found[faces.attributes[i].tobytes()][1].astype(float)
        assert np.abs(image - faces[i].image.numpy()).mean() <= tolerance
    return {key: split for key, (split, _) in found.items()}


OFFICIAL = ["train", "train", "val", "val", "test", "test", "train", "train"]


def test_stargans_folders(faces: CelebAHQ, lists: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = stargan(faces, tmp_path / "celeba_hq"), tmp_path / "out"
    lines = import_copy(str(source), out, lists[0])
    assert "8 faces: 4 train, 2 val, 2 test (split CelebA's own, by identity: no" in lines[0]
    assert CelebAHQ(out, None, 64).split_kind == "identity"
    splits = assert_same_faces(faces, out, 0)
    assert [splits[faces.attributes[i].tobytes()] for i in range(8)] == OFFICIAL


@pytest.mark.parametrize("name", ["{}.jpg", "{:05d}.jpg", "imgHQ{:05d}.jpg"])
def test_plain_folders_beside_celebas_lists(
    faces: CelebAHQ, lists: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    import_copy(str(plain(faces, tmp_path / "images", name)), out, *lists)
    splits = assert_same_faces(faces, out, 0)
    assert [splits[faces.attributes[i].tobytes()] for i in range(8)] == OFFICIAL
    assert sorted(read_attributes(out / ATTRIBUTE_FILE, image_number)) == list(range(100, 108))


@pytest.mark.parametrize("form", ["list", "bool", "named"])
def test_parquet(faces: CelebAHQ, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    lines = import_copy(str(parquet(faces, tmp_path / "parquet", form)), out)
    splits = assert_same_faces(faces, out, 0)
    if form == "named":
        assert "by identity" in lines[0]
        assert [splits[faces.attributes[i].tobytes()] for i in range(8)] == OFFICIAL
    else:
        assert "by chance" in lines[0]


def test_what_carries_no_attributes_is_refused_with_one_that_does(
    faces: CelebAHQ, tmp_path: Path
) -> None:
    source = parquet(faces, tmp_path / "captions", "none")
    with pytest.raises(ValueError, match=r"no attributes .*image, text.*eurecom-ds/celeba-hq-256"):
        import_copy(str(source), tmp_path / "out")
    bare = plain(faces, tmp_path / "bare", "{}.jpg")
    with pytest.raises(FileNotFoundError, match=r"list_attr_celeba\.txt"):
        import_copy(str(bare), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_copy_that_counts_from_one_and_a_wrong_name_are_refused(
    faces: CelebAHQ, lists: tuple[Path, Path], tmp_path: Path
) -> None:
    shifted = plain(faces, tmp_path / "shifted", "{}.jpg", first=101)
    with pytest.raises(ValueError, match="108 is no index of CelebA-HQ"):
        import_copy(str(shifted), tmp_path / "out", *lists)
    wrong = stargan(faces, tmp_path / "stargan")
    first = next(wrong.glob("*/male/*.jpg"))
    first.rename(first.parent.parent / "female" / first.name)
    with pytest.raises(ValueError, match="is in the wrong folder"):
        import_copy(str(wrong), tmp_path / "out", lists[0])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes").touch()
    with pytest.raises(FileExistsError, match="there is there already"):
        import_copy(str(wrong), tmp_path / "there", lists[0])
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["notes"]


def test_values_of_a_record() -> None:
    for values in (
        [1, 0] * 20,
        [1, -1] * 20,
        [True, False] * 20,
        [1.0, 0.0] * 20,
        ["1", "-1"] * 20,
    ):
        assert as_attributes(values).tolist() == [True, False] * 20
    for wrong in ([1] * 39, [2] * 40, [None] * 40, ["yes"] * 40, []):
        with pytest.raises(ValueError, match="expected 40 attributes"):
            as_attributes(wrong)


def test_a_split_by_chance_is_the_same_every_time() -> None:
    splits = [split_by_chance(number) for number in range(5000)]
    assert splits == [split_by_chance(number) for number in range(5000)]
    assert np.bincount(splits) / 5000 == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_a_folder_is_described(drawn_folder: Path, tmp_path: Path) -> None:
    assert "lacks CelebA-HQ-img and" in describe_folder(tmp_path)
    assert "holds 36 of 30000" in describe_folder(drawn_folder)


# --- other forms ---


def image_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / IMAGE_FOLDER).iterdir()}


def official(faces: CelebAHQ, folder: Path, name: str = "{}.jpg") -> Path:
    """The official folder of eight faces, with the indices 0 to 7."""
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    for i in range(8):
        (folder / IMAGE_FOLDER / name.format(i)).write_bytes(faces.path(i).read_bytes())
    shutil.copy(faces.folder / ATTRIBUTE_FILE, folder)
    return folder


NAMES = ["{}.jpg", "{:05d}.jpg", "{}.JPG", "{}.jpeg"]


@pytest.mark.parametrize("name", NAMES)
def test_the_official_folder_itself(faces: CelebAHQ, tmp_path: Path, name: str) -> None:
    source = official(faces, tmp_path / "CelebAMask-HQ", name)
    masks = source / "CelebAMask-HQ-mask-anno" / "0"
    masks.mkdir(parents=True)
    for junk in (masks / "00000.png", source / IMAGE_FOLDER / "._0.jpg", source / ".DS_Store"):
        junk.write_bytes(b"\0")
    for place in (source, source / IMAGE_FOLDER):  # the labels then lie beside it
        out = tmp_path / f"out{place.name}"
        lines = import_copy(str(place), out)
        assert "by identity" in lines[0]
        assert image_bytes(out) == {f"{i}.jpg": faces.path(i).read_bytes() for i in range(8)}
        opened = CelebAHQ(out, None, 64)
        assert opened.indices.tolist() == list(range(8)) and opened.split_kind == "identity"
        assert opened.splits.tolist() == official_split()[:8].tolist()
        assert np.array_equal(opened.attributes, faces.attributes[:8])
        assert not (out / MAPPING_FILE).exists()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_bytes_of_other_formats_are_copied_and_named_by_what_they_are(
    faces: CelebAHQ, tmp_path: Path, kind: str
) -> None:
    source = official(faces, tmp_path / "source")
    for path in (source / IMAGE_FOLDER).iterdir():  # a PNG under a name that ends in .jpg
        Pillow.open(path).save(path.with_suffix(".new"), kind)
        path.with_suffix(".new").replace(path)
    import_copy(str(source), tmp_path / "out")
    expected = {
        f"{path.stem}.{kind.lower()}": path.read_bytes()
        for path in (source / IMAGE_FOLDER).iterdir()
    }
    assert image_bytes(tmp_path / "out") == expected
    assert len(CelebAHQ(tmp_path / "out", None, 64)) == 8


def test_the_folder_that_is_meant_already_is_checked_where_it_lies(
    faces: CelebAHQ, tmp_path: Path
) -> None:
    source = official(faces, tmp_path / "celeba_hq")
    before = sorted(tmp_path.rglob("*"))
    lines = import_copy(str(source), source)
    assert "nothing has to be imported" in lines[0] and "8 faces" in lines[1]
    assert sorted(tmp_path.rglob("*")) == before


def celeba(faces: CelebAHQ, lists: tuple[Path, Path], folder: Path, form: str) -> Path:
    """CelebA as published, 178x218, with its attribute list as text or as Kaggle's CSV."""
    inner = {"text": "img_align_celeba", "csv": "img_align_celeba/img_align_celeba"}[form]
    (folder / inner).mkdir(parents=True)
    for i, number in enumerate(NUMBERS):
        image = Pillow.open(faces.path(i)).resize((178, 218))
        image.save(folder / inner / f"{number:06d}.jpg")
    if form == "text":
        shutil.copy(lists[0], folder / "list_attr_celeba.txt")
        return folder
    rows = [line.split() for line in lists[0].read_text().splitlines()[2:]]
    with (folder / "list_attr_celeba.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image_id", *ATTRIBUTES], *rows])
    return folder


@pytest.mark.parametrize("form", ["text", "csv"])
def test_celeba_as_published(
    faces: CelebAHQ, lists: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    source, out = celeba(faces, lists, tmp_path / "celeba", form), tmp_path / "out"
    with pytest.raises(ValueError, match=r"178x218 pixels, as the faces of CelebA.*--celeba"):
        import_copy(str(source), out)
    import_copy(str(source), out, is_hq=False)
    found = {attributes: split for attributes, (split, _) in by_attributes(out).items()}
    assert [found[faces.attributes[i].tobytes()] for i in range(8)] == OFFICIAL
    assert CelebAHQ(out, None, 64).split_kind == "identity"


def test_kaggles_csv_beside_images_by_index(
    faces: CelebAHQ, lists: tuple[Path, Path], tmp_path: Path
) -> None:
    source = plain(faces, tmp_path / "images", "{:05d}.jpg")
    shutil.copy(celeba(faces, lists, tmp_path / "celeba", "csv") / "list_attr_celeba.csv", tmp_path)
    shutil.copy(lists[1], tmp_path)
    out = tmp_path / "out"
    import_copy(str(source), out)
    splits = assert_same_faces(faces, out, 0)
    assert [splits[faces.attributes[i].tobytes()] for i in range(8)] == OFFICIAL


def test_any_images_with_a_table_of_their_names(faces: CelebAHQ, tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    names = [f"face {i}.webp" for i in range(8)]
    for i, name in enumerate(names):
        Pillow.open(faces.path(i)).save(source / name, lossless=True)
    with (source / "labels.csv").open("w", newline="") as file:
        columns = list(reversed(ATTRIBUTES))  # found by name, not by place
        rows = [[*faces.attributes[i].astype(int)[::-1], name] for i, name in enumerate(names)]
        csv.writer(file).writerows([[*columns, "file"], *rows])
    lines = import_copy(str(source), tmp_path / "out")
    assert "by chance" in lines[0]
    assert_same_faces(faces, tmp_path / "out", 0)
    (source / "labels.csv").write_text((source / "labels.csv").read_text().replace("face 3", "x"))
    lines = import_copy(str(source), tmp_path / "once more")
    assert lines[0].startswith("7 faces") and "left out 1" in lines[1]
    assert lines[2] == "  face 3.webp: labels.csv has no row for it"
    (source / "masks").mkdir()
    Pillow.new("L", (64, 64)).save(source / "masks" / "face 5.png")
    with pytest.raises(ValueError, match=r"two images have one .*face 5\.webp and .*face 5\.png"):
        import_copy(str(source), tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("data-0.arrow", "data-0.arrow is not read: write it as parquet"),
        ("metadata.jsonl", "metadata.jsonl is not read: write it as CSV"),
        ("faces.tar.gz", "faces.tar.gz is not read: unpack it"),
        ("notes.csv", "not one table (notes.csv) has the 40 attributes"),
    ],
)
@pytest.mark.parametrize("with_images", [True, False])
def test_what_is_not_read_is_named_with_a_remedy(
    faces: CelebAHQ, tmp_path: Path, name: str, remedy: str, with_images: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / name).write_text("image,note\n")
    if with_images:
        (source / "a.jpg").write_bytes(faces.path(0).read_bytes())
    elif name == "notes.csv":
        remedy = "it has notes.csv"
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(remedy)):
        import_copy(str(source), tmp_path / "out")


def test_two_images_of_one_number_are_named(faces: CelebAHQ, tmp_path: Path) -> None:
    source = official(faces, tmp_path / "source")
    shutil.copy(faces.path(0), source / IMAGE_FOLDER / "00003.jpeg")
    with pytest.raises(ValueError, match=r"two images have one .*00003\.jpeg and .*3\.jpg: keep"):
        import_copy(str(source), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_adapter_from_outside(faces: CelebAHQ, tmp_path: Path) -> None:
    """Another form of the data is one function that yields image, attributes and name."""

    def newest_first(folder: Path) -> Iterator[Row]:
        for position in reversed(range(8)):
            path = folder / f"{position}.jpg"
            yield Row(path.read_bytes(), faces.attributes[position], path.name)

    lines = import_rows(newest_first(faces.folder / IMAGE_FOLDER), tmp_path / "out", "mine")
    assert lines[0].startswith("8 faces") and "by chance" in lines[0]
    assert_same_faces(faces, tmp_path / "out", 0)
    assert CelebAHQ(tmp_path / "out", None, 64).split_kind == "chance"


def archive(folder: Path, path: Path) -> Path:
    """A zip archive as macOS makes one, with its hidden files."""
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(filter(Path.is_file, folder.rglob("*"))):
            name = f"{folder.name}/{member.relative_to(folder).as_posix()}"
            file.write(member, name)
            file.writestr(f"__MACOSX/{folder.name}/._{member.name}", b"\0\5\x16\7")
    return path


@pytest.mark.parametrize("form", ["official", "stargan", "parquet", "inside"])
def test_a_zip_archive(
    faces: CelebAHQ, lists: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    if form == "stargan":
        folder = stargan(faces, tmp_path / "celeba_hq")
        shutil.copy(lists[0], tmp_path)  # beside the archive
    elif form == "parquet":
        folder = parquet(faces, tmp_path / "parquet", "list")
    else:
        folder = official(faces, tmp_path / "CelebAMask-HQ")
    source = archive(folder, tmp_path / "faces.zip")
    if form == "inside":  # such as a data set on the hub that is one archive
        (tmp_path / "snapshot").mkdir()
        source = source.rename(tmp_path / "snapshot" / "faces.zip").parent
    import_copy(str(source), tmp_path / "out")
    assert_same_faces(faces, tmp_path / "out", 0)


def test_torn_archives_and_other_files_are_named(faces: CelebAHQ, tmp_path: Path) -> None:
    whole = archive(official(faces, tmp_path / "faces"), tmp_path / "faces.zip").read_bytes()
    (tmp_path / "faces.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"faces\.zip is not a whole zip archive"):
        import_copy(str(tmp_path / "faces.zip"), tmp_path / "out")
    (tmp_path / "faces.tar").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"faces\.tar is a file, but neither .*unpack it"):
        import_copy(str(tmp_path / "faces.tar"), tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none holds no form .* no file of a kind"):
        import_copy(str(tmp_path / "none"), tmp_path / "out")


# --- parquet ---


def shard(faces: CelebAHQ, path: Path, column: str, bare: bool = False) -> Path:
    """Eight rows without the metadata of the `datasets` library."""
    images: list[object] = [faces.path(i).read_bytes() for i in range(8)]
    if not bare:
        images = [{"bytes": data, "path": None} for data in images]
    rows = faces.attributes[:8].astype(int).tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: images, "attributes": rows, "size": [64] * 8}), path)
    return path


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("column", ["img", "jpg", "Image", "picture"])
def test_an_image_column_of_any_name_and_its_bytes_as_they_are(
    faces: CelebAHQ, tmp_path: Path, column: str, bare: bool
) -> None:
    source = shard(faces, tmp_path / "source" / "train-0.parquet", column, bare)
    for place, out in ((source, tmp_path / "of file"), (source.parent, tmp_path / "of folder")):
        import_copy(str(place), out)
        expected = {f"{i}.jpg": faces.path(i).read_bytes() for i in range(8)}
        assert image_bytes(out) == expected


BROKEN = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "none": lambda _: None,
    "text": lambda _: b"<html>not found</html>",
}


@pytest.mark.parametrize("how", BROKEN)
def test_one_broken_image_is_named_and_the_others_are_kept(
    faces: CelebAHQ, tmp_path: Path, how: str
) -> None:
    path = shard(faces, tmp_path / "source" / "train-0.parquet", "image", bare=True)
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[3] = BROKEN[how](images[3])
    pq.write_table(table.set_column(0, "image", [images]), path)
    lines = import_copy(str(path), tmp_path / "out")
    assert lines[0].startswith("7 faces") and lines[1].startswith("left out 1")
    assert lines[2].startswith("  train-0.parquet, row 3: ")
    opened = CelebAHQ(tmp_path / "out", None, 64)
    assert opened.indices.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert np.array_equal(opened.attributes, faces.attributes[opened.indices])
    about = json.loads((tmp_path / "out" / ABOUT_FILE).read_text())
    assert list(about["left_out"]) == ["train-0.parquet, row 3"]


@pytest.mark.parametrize("form", ["values by name", "names"])
def test_attributes_by_their_names_and_one_row_without(
    faces: CelebAHQ, tmp_path: Path, form: str
) -> None:
    path = shard(faces, tmp_path / "source" / "train-0.parquet", "image", bare=True)
    by_name = [dict(zip(ATTRIBUTES, row.tolist(), strict=True)) for row in faces.attributes[:8]]
    if form == "names":
        held: list = [[name for name, has in row.items() if has] for row in by_name]
        held[3] = ["Freckles"]
    else:
        held = [{**row, "Bald": None if i == 3 else row["Bald"]} for i, row in enumerate(by_name)]
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "attributes", pa.array(held)), path)
    lines = import_copy(str(path), tmp_path / "out")
    assert "train-0.parquet, row 3: expected 40 attributes" in lines[2]
    opened = CelebAHQ(tmp_path / "out", None, 64)
    assert opened.indices.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert np.array_equal(opened.attributes, faces.attributes[opened.indices])


def test_a_form_that_is_not_understood_is_refused_after_the_first_rows(
    faces: CelebAHQ, tmp_path: Path
) -> None:
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        for read in range(1, 10_000):
            yield Row(faces.path(0).read_bytes(), None, f"row {read}", why_not="no attributes")

    with pytest.raises(ValueError, match=r"64 of the first 64 images .*\n  row 1: no attributes"):
        import_rows(rows(), tmp_path / "out", "somewhere")
    assert read == 64 and not (tmp_path / "out").exists()


def test_more_broken_images_than_good_ones_are_refused(faces: CelebAHQ, tmp_path: Path) -> None:
    source = official(faces, tmp_path / "source")
    for i in range(4):
        (source / IMAGE_FOLDER / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"4 of 8 images .*\n  0\.jpg: the file is empty"):
        import_copy(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torn_shards_are_named(faces: CelebAHQ, tmp_path: Path) -> None:
    path = shard(faces, tmp_path / "source" / "train-0.parquet", "image")
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"train-0\.parquet is no whole parquet file"):
        import_copy(str(path.parent), tmp_path / "out")
    path.write_bytes(whole[:4] + bytes(2000) + whole[2004:])
    with pytest.raises(ValueError, match=r"train-0\.parquet is damaged"):
        import_copy(str(path.parent), tmp_path / "out")
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), path)
    with pytest.raises(ValueError, match=r"several columns of images \(a, b\)"):
        import_copy(str(path.parent), tmp_path / "out")
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match=r"no images \(its columns: a\)"):
        import_copy(str(path.parent), tmp_path / "out")


# --- interruptions ---


def test_an_interrupted_import_goes_on_and_leaves_no_trace(
    faces: CelebAHQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = official(faces, tmp_path / "source"), tmp_path / "out"
    import_copy(str(source), tmp_path / "whole")
    monkeypatch.setattr(official_folder, "BATCH", 3)
    written: list[Path] = []
    really = official_folder.files.replacing
    killed_at = [6]  # one was the note of the source

    def replacing(path: Path) -> object:
        if len(written) == killed_at[0]:
            raise KeyboardInterrupt
        written.append(path)
        return really(path)

    monkeypatch.setattr(official_folder, "WRITERS", 1)
    monkeypatch.setattr(official_folder.files, "replacing", replacing)
    with pytest.raises(KeyboardInterrupt):
        import_copy(str(source), out)
    assert not out.exists()
    unfinished = tmp_path / "out.importing"
    assert len(image_bytes(unfinished)) == 5
    (unfinished / IMAGE_FOLDER / "1.jpg").write_bytes(b"\0" * 900)  # as a power cut leaves it
    (unfinished / IMAGE_FOLDER / "99.jpg").write_bytes(b"of a face that is gone")
    (unfinished / IMAGE_FOLDER / "2.jpg.17.unfinished").write_bytes(b"half")
    written.clear()
    killed_at[0] = -1
    import_copy(str(source), out)
    images = [path.name for path in written if path.parent.name == IMAGE_FOLDER]
    assert images == ["1.jpg", "5.jpg", "6.jpg", "7.jpg"]
    assert image_bytes(out) == image_bytes(tmp_path / "whole")
    assert not unfinished.exists()


def test_a_full_disk_keeps_what_was_imported_and_is_named(
    faces: CelebAHQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source, written = official(faces, tmp_path / "source"), []
    really = Path.write_bytes

    def write(path: Path, data: bytes) -> int:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return really(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match=r"no space left for .*out\.importing: make room"):
        import_copy(str(source), tmp_path / "out")
    assert "keeps what was imported" in capsys.readouterr().err
    assert len(image_bytes(tmp_path / "out.importing")) == 5
    monkeypatch.undo()
    import_copy(str(source), tmp_path / "out")
    assert image_bytes(tmp_path / "out") == image_bytes(source)


def test_what_another_source_left_is_not_kept(faces: CelebAHQ, tmp_path: Path) -> None:
    left = tmp_path / "out.importing"
    official(faces, left)
    (left / ABOUT_FILE).write_text('{"source": "another"}')
    (left / PARTITION_FILE).write_text("000001.jpg 2\n")
    (left / MAPPING_FILE).write_text("0 0 000001.jpg\n")
    import_copy(str(official(faces, tmp_path / "source")), tmp_path / "out")
    assert not (tmp_path / "out" / MAPPING_FILE).exists()


def test_a_torn_member_of_an_archive_is_left_out(faces: CelebAHQ, tmp_path: Path) -> None:
    source = archive(official(faces, tmp_path / "faces"), tmp_path / "faces.zip")
    data = bytearray(source.read_bytes())
    place = data.index(faces.path(3).read_bytes())
    data[place + 500 : place + 600] = bytes(100)
    source.write_bytes(data)
    lines = import_copy(str(source), tmp_path / "out")
    assert lines[0].startswith("7 faces") and lines[2].startswith("  3.jpg: Bad CRC-32")


def test_the_command_ends_in_one_line(
    faces: CelebAHQ,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    source, out = official(faces, tmp_path / "source"), tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["importing", str(source), "--out", str(out)])
    importing.main()
    assert f"CELEBA_HQ_DIR={out}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"not imported: .*out is there already"):
        importing.main()
    monkeypatch.setattr("sys.argv", ["importing", str(tmp_path / "gone"), "--out", str(out) + "2"])
    with pytest.raises(SystemExit, match=r"gone is not there; .* holds out, source\. Name a"):
        importing.main()
    with files.locked(tmp_path / ".out.lock"):
        monkeypatch.setattr("sys.argv", ["importing", str(source), "--out", str(out)])
        with pytest.raises(SystemExit, match=r"in use by process \d+"):
            importing.main()
    monkeypatch.setenv("CELEBA_HQ_DIR", str(out))
    monkeypatch.setattr("sys.argv", ["importing"])
    importing.main()
    assert f"{out} holds 8 of 30000 images" in capsys.readouterr().out


# --- real faces ---


@pytest.fixture(scope="module")
def first_faces(real_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 real faces in the official form, those of the lowest indices, of which 24 % are men."""
    folder = tmp_path_factory.mktemp("first") / "CelebAMask-HQ"
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    faces = CelebAHQ(real_faces, None, 64)
    for position in range(1000):
        shutil.copy(faces.path(position), folder / IMAGE_FOLDER)
    shutil.copy(real_faces / ATTRIBUTE_FILE, folder)
    return folder


def test_the_first_real_faces_are_imported(first_faces: Path, tmp_path: Path) -> None:
    lines = import_copy(str(first_faces), tmp_path / "out")
    assert lines[0].startswith("1000 faces") and "by identity" in lines[0]
    assert lines[1].startswith("sex read from thumbnails, AUC 0.9")
    assert image_bytes(tmp_path / "out") == image_bytes(first_faces)


def test_the_first_real_faces_as_rows_without_names(first_faces: Path, tmp_path: Path) -> None:
    faces = CelebAHQ(first_faces, None, 64)

    def rows(shift: int) -> Iterator[Row]:
        for position, attributes in enumerate(np.roll(faces.attributes, shift, axis=0)):
            yield Row(faces.path(position).read_bytes(), attributes, f"row {position}")

    assert "by chance" in import_rows(rows(0), tmp_path / "out", "rows")[0]
    with pytest.raises(ValueError, match=r"do not line up.*rows are shifted by one"):
        import_rows(rows(1), tmp_path / "shifted", "rows")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_images_that_are_renumbered_by_one_are_refused(first_faces: Path, tmp_path: Path) -> None:
    faces = CelebAHQ(first_faces, None, 64)
    moved = tmp_path / "moved"
    (moved / IMAGE_FOLDER).mkdir(parents=True)
    shutil.copy(first_faces / ATTRIBUTE_FILE, moved)
    for position in range(1000):  # each bears the number of the next
        name = faces.path((position + 1) % 1000).name
        (moved / IMAGE_FOLDER / name).write_bytes(faces.path(position).read_bytes())
    with pytest.raises(ValueError, match="labels and images do not line up"):
        import_copy(str(moved), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_rows_in_the_official_order_get_the_official_indices_and_split(
    faces: CelebAHQ, real_faces: Path, tmp_path: Path
) -> None:
    labels = read_attributes(real_faces / ATTRIBUTE_FILE, image_number)
    image = faces.path(0).read_bytes()

    def rows(first: int) -> Iterator[Row]:
        for i in range(250):
            yield Row(b"" if i == 7 else image, labels[first + i], f"row {i}")

    lines = import_rows(rows(0), tmp_path / "out", "rows")
    assert "by identity" in lines[0]
    opened = CelebAHQ(tmp_path / "out", None, 64)
    assert opened.indices.tolist() == [i for i in range(250) if i != 7]
    assert opened.splits.tolist() == official_split()[opened.indices].tolist()
    assert opened.split_kind == "identity"
    assert "by chance" in import_rows(rows(100), tmp_path / "other", "rows")[0]
