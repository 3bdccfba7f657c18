"""Copies of CelebA-HQ in every form, made small, come out as one; wrong ones are refused."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Sequence, Value

from custom_datasets import importing, verification
from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    IMAGE_FOLDER,
    MAPPING_FILE,
    image_number,
    read_attributes,
)
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.importing import as_attributes, import_copy, split_of

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
    splits = assert_same_faces(faces, out, 3)
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
    with pytest.raises(ValueError, match="among the wrong sex"):
        import_copy(str(wrong), tmp_path / "out", lists[0])
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there is there already"):
        import_copy(str(wrong), tmp_path / "there", lists[0])
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        import_copy(str(tmp_path / "nowhere"), tmp_path / "out")


def test_values_of_a_record() -> None:
    ones = [1, 0] * 20
    assert as_attributes({"attributes": ones}).tolist() == [True, False] * 20
    signs = dict(zip(ATTRIBUTES, [1, -1] * 20, strict=True))
    assert as_attributes(signs).tolist() == [True, False] * 20
    assert as_attributes({"image": 0, "text": ""}) is None
    for wrong in ([1] * 39, [2] * 40):
        with pytest.raises(ValueError, match="expected 40 attributes"):
            as_attributes({"attributes": wrong})


def test_a_split_by_chance_is_the_same_every_time() -> None:
    row = importing.Row(Path(), np.zeros(40, bool))
    splits = [split_of(row, number) for number in range(5000)]
    assert splits == [split_of(row, number) for number in range(5000)]
    assert np.bincount(splits) / 5000 == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


# --- verification ---


def test_rates_beside_the_known_ones() -> None:
    rates = verification.CELEBA_HQ_RATES
    share = np.full(40, 0.5)
    for name, rate in rates.items():
        share[ATTRIBUTES.index(name)] = rate
    good = np.random.default_rng(0).random((5000, 40)) < share
    assert len(verification.check_rates(good, rates)) == len(rates)
    for wrong in (~good, np.roll(good, 1, axis=1)):
        with pytest.raises(ValueError, match=r"rates differ: .*Male"):
            verification.check_rates(wrong, rates)
        verification.check_rates(wrong[:500], rates)  # too few to tell


def test_the_probe_sees_a_shift_by_one() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.4
    thumbnails = rng.random((2000, 576)) + 0.15 * labels[:, None] * rng.random(576)
    assert verification.probe_auc(thumbnails, labels) > 0.9
    assert 0.4 < verification.probe_auc(thumbnails, np.roll(labels, 1)) < 0.6


def test_real_faces_line_up_and_shifted_ones_do_not(real_faces: Path) -> None:
    faces = CelebAHQ(real_faces, "train", 64)
    paths = [faces.path(i) for i in range(1500)]
    assert (real_faces / IMAGE_FOLDER).is_dir()
    assert verification.check_alignment(paths, faces.attributes[:1500]) > 0.9
    with pytest.raises(ValueError, match="do not line up"):
        verification.check_alignment(paths, np.roll(faces.attributes[:1500], 1, axis=0))
    verification.check_rates(faces.attributes, verification.CELEBA_HQ_RATES)


def test_a_hub_copy_without_attributes_is_refused_before_it_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def load(name: str, streaming: bool = False) -> dict[str, list[dict[str, str]]]:
        asked.append((name, streaming))
        return {"train": [{"image": "", "text": "a face"}]}

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(ValueError, match="Ryan-sjtu/celebahq-caption carries no attributes"):
        importing.import_copy("Ryan-sjtu/celebahq-caption", tmp_path / "out")
    assert asked == [("Ryan-sjtu/celebahq-caption", True)]


def test_a_folder_is_described(drawn_folder: Path, tmp_path: Path) -> None:
    assert "lacks CelebA-HQ-img and" in importing.describe_folder(tmp_path)
    assert "holds 36 of 30000" in importing.describe_folder(drawn_folder)
