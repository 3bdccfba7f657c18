"""Faces in every form come out as one table; the faces of CelebA-HQ are recognised in each."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import imagehash
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import config as config_module
from custom_datasets import face_table, recognition, sources
from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    IMAGE_FOLDER,
    read_attributes,
    write_metadata,
)
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.recognition import attribute_digests, perceptual_hash
from custom_datasets.splits import (
    NO_SPLIT,
    SPLITS,
    official_split,
    split_by_chance,
)

INDICES = [*range(12), 234, 235]  # 234 and 235 are one photograph, in train and in test
PHOTOGRAPHS = Path(recognition.__file__).parent / "recognition" / "same_photograph.csv"
PAIRS = pd.read_csv(PHOTOGRAPHS).iloc[:, :2].to_numpy().tolist()
OFFICIAL = np.random.default_rng(0).random((30_000, 40)) < 0.5


def blots(seed: int) -> Image.Image:
    """A picture that a perceptual hash tells from others."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of its own, a cache of its own, and a CelebA-HQ of which 14 faces are at hand."""
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hashes = np.random.default_rng(1).integers(0, 2**63, (30_000, 4), dtype=np.uint64)
    for index in INDICES:
        bits = imagehash.phash(blots(index), hash_size=16).hash.reshape(-1)
        hashes[index] = np.packbits(bits).view(np.uint64)
    monkeypatch.setattr(recognition, "known_hashes", lambda: hashes)
    for module in (recognition, sources):
        monkeypatch.setattr(module, "known_digests", lambda: attribute_digests(OFFICIAL))
    return tmp_path


def write_annotation(folder: Path, indices: list[int]) -> None:
    """As it is published: two spaces after the name."""
    rows = [f"{i}.jpg  " + " ".join("1" if v else "-1" for v in OFFICIAL[i]) for i in indices]
    text = "\n".join([str(len(rows)), " ".join(ATTRIBUTES), *rows])
    (folder / ATTRIBUTE_FILE).write_text(text + "\n")


def write_pictures(folder: Path, names: dict[str, int]) -> None:
    for name, seed in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        blots(seed).save(folder / name)


@pytest.fixture
def official(root: Path) -> Path:
    folder = root / "CelebAMask-HQ"
    write_pictures(folder / IMAGE_FOLDER, {f"{index}.jpg": index for index in INDICES})
    (folder / IMAGE_FOLDER / "Thumbs.db").write_text("")
    (folder / IMAGE_FOLDER / "._0.jpg").write_text("")
    write_annotation(folder, list(range(300)))
    return folder


def assert_official(faces: CelebAHQ, indices: list[int]) -> None:
    assert faces.indices.tolist() == indices and faces.split_kind == "identity"
    assert np.array_equal(faces.attributes, OFFICIAL[indices])
    assert np.array_equal(faces.splits, official_split()[indices])
    for face in faces:
        assert face.split == SPLITS[official_split()[face.index]]
        want = torch.from_numpy(np.array(blots(face.index).resize((32, 32)))).permute(2, 0, 1)
        assert (face.image.float() - want).abs().mean() < 12


def test_the_official_folder(official: Path) -> None:
    assert_official(CelebAHQ(official, None, 32), INDICES[:-1])
    assert_official(CelebAHQ(official.parent, None, 32), INDICES[:-1])  # as archives unpack
    for split in set(official_split()[INDICES[:12]]):
        chosen = CelebAHQ(official, SPLITS[split], 32)
        assert chosen.indices.tolist() == [i for i in INDICES[:-1] if official_split()[i] == split]


def test_the_held_out_faces_that_are_trained_on_are_in_no_split() -> None:
    splits = official_split()
    assert np.bincount(splits).tolist() == [24_183, 2_988, 2_813, 16]
    assert splits[[234, 235]].tolist() == [0, NO_SPLIT]
    pairs = [set(splits[pair].tolist()) for pair in PAIRS]
    assert not any(pair in ({0, 1}, {0, 2}) for pair in pairs)


def test_a_copy_of_pictures_alone_is_recognised(
    official: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Under other names, in another order and size, in another format, mixed with others."""
    copy = root / "copy"
    copy.mkdir()
    for index in INDICES:
        name = f"{(index * 7919) % 1000:04d}." + ("png" if index % 2 else "webp")
        blots(index).resize((160, 160)).save(copy / name)
    # Their folder does not divide them, nor others beside them: their identity does.
    write_pictures(copy, {"stranger.jpg": 99, "train/other.jpg": 98})
    monkeypatch.setenv("CELEBA_HQ_DIR", str(official))  # its table tells the attributes
    faces = CelebAHQ(copy, None, 32)
    assert_official(faces, INDICES[:-1])
    said = capsys.readouterr().out
    assert "stranger.jpg" in said and "other.jpg" in said and "by chance" not in said
    blots(99).save(copy / "0000.webp")  # face 0: what was recognised holds for unchanged files
    assert_official(CelebAHQ(copy, None, 32), INDICES[1:-1])


def test_the_attributes_are_found_beside_a_folder_of_pictures_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In data/celeba_hq, though CELEBA_HQ_DIR names the pictures; not in a folder beside them."""
    copy, kept = root / "copies" / "mine", root / "data" / "celeba_hq"
    endings = ("png", "jfif", "BMP", "tiff", "webp", "jpeg")
    write_pictures(copy, {f"{index:02d}.{endings[index % 6]}": index for index in range(12)})
    kept.mkdir(parents=True)
    write_annotation(kept, list(range(30)))
    (root / "copies" / "other").mkdir()
    (root / "copies" / "other" / ATTRIBUTE_FILE).write_text("another's")
    monkeypatch.setenv("CELEBA_HQ_DIR", str(copy))
    assert_official(CelebAHQ(copy, None, 32), list(range(12)))


def test_names_that_claim_another_face_are_not_believed(root: Path) -> None:
    """Some copies count from 1."""
    folder = root / "renumbered"
    write_pictures(folder / IMAGE_FOLDER, {f"{index + 1}.jpg": index for index in range(12)})
    write_annotation(folder, list(range(30)))
    assert_official(CelebAHQ(folder, None, 32), list(range(12)))


def test_other_pictures_with_such_names_have_no_split_of_celeba(root: Path) -> None:
    folder = root / "mine"
    write_pictures(folder, {f"{i:06d}.jpg": 500 + i for i in range(20)})
    write_annotation(folder, list(range(20)))
    with pytest.raises(ValueError, match=r"metadata\.csv"):
        CelebAHQ(folder, None, 32)
    write_metadata(folder, [f"{i:06d}.jpg" for i in range(20)], OFFICIAL[:20])
    faces = CelebAHQ(folder, None, 32)
    assert faces.split_kind == "chance" and np.bincount(faces.splits).tolist() == [12, 4, 4]
    assert np.array_equal(faces.attributes, OFFICIAL[:20])


def write_parquet(folder: Path, columns: dict[str, list], indices: list[int], name: str) -> None:
    folder.mkdir(exist_ok=True)
    values = {"image": [blots(i) for i in indices], **columns}
    table = datasets.Dataset.from_dict(values).cast_column("image", datasets.Image())
    table.to_parquet(folder / f"{name}-00000-of-00001.parquet")


def as_list(indices: list[int]) -> dict[str, list]:
    return {"attributes": OFFICIAL[indices].astype(int).tolist()}


def as_columns(indices: list[int]) -> dict[str, list]:
    backwards = reversed(ATTRIBUTES)  # columns go by name
    signs = 2 * OFFICIAL[indices].astype(int) - 1
    return {n.replace("_", " "): signs[:, ATTRIBUTES.index(n)].tolist() for n in backwards}


@pytest.mark.parametrize(
    ("form", "order"), [(as_list, [5, 0, 3, 1, 4, 2]), (as_columns, list(range(12)))]
)
def test_a_data_set_of_celeba_hq(
    root: Path, form: Callable[[list[int]], dict[str, list]], order: list[int]
) -> None:
    """What the hub serves, and `datasets` opens, lies in parquet files."""
    write_parquet(root / "hub", form(order), order, "train")
    assert_official(CelebAHQ(root / "hub", None, 32), sorted(order))


def test_labels_of_another_face_are_told(root: Path, capsys: pytest.CaptureFixture) -> None:
    columns = as_list(list(range(12)))
    columns["attributes"][7] = columns["attributes"][8]
    write_parquet(root / "hub", columns, list(range(12)), "train")
    faces = CelebAHQ(root / "hub", None, 32)
    assert np.array_equal(faces.attributes[7], OFFICIAL[8])
    assert "1 of 12" in capsys.readouterr().out


def test_a_data_set_of_other_faces_keeps_its_split(root: Path) -> None:
    for name, indices in (("train", [40, 41, 42]), ("validation", [43]), ("test", [44, 45])):
        write_parquet(root / "hub", as_list(indices), indices, name)
    faces = CelebAHQ(root / "hub", None, 32)
    assert faces.split_kind == "own" and np.bincount(faces.splits).tolist() == [3, 1, 2]
    for split, indices in (("train", [40, 41, 42]), ("val", [43]), ("test", [44, 45])):
        chosen = CelebAHQ(root / "hub", split, 32)
        assert np.array_equal(chosen.attributes, OFFICIAL[indices])


def test_a_data_set_with_captions(root: Path, capsys: pytest.CaptureFixture) -> None:
    indices = list(range(40, 50))
    texts = [f"number {i}" for i in indices[:-1]]
    write_parquet(root / "hub", {"text": [*texts, None]}, indices, "train")
    faces = CelebAHQ(root / "hub", None, 32)
    assert [faces.caption(i).text for i in range(len(faces))] == texts and not faces.has_attributes
    assert faces.split_kind == "chance" and "row 9" in capsys.readouterr().out
    assert sorted(np.bincount(faces.splits).tolist()) == [2, 2, 5]


def test_a_damaged_data_set_is_named(root: Path) -> None:
    (root / "hub").mkdir()
    (root / "hub" / "train.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match="hub"):
        CelebAHQ(root / "hub", None, 32)


def test_a_list_that_is_in_another_order_is_told(capsys: pytest.CaptureFixture) -> None:
    rates = np.array([face_table.CELEBA_RATES.get(name, 0.1) for name in ATTRIBUTES])
    values = np.random.default_rng(0).random((1200, 40)) < rates
    face_table._warn_of_rates("right", values)
    assert not capsys.readouterr().out
    face_table._warn_of_rates("reversed", values[:, ::-1])
    assert "reversed" in capsys.readouterr().out


def test_attributes_of_the_hub_that_are_others_or_not_there_are_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(name: str, **options: object) -> list[dict]:
        assert options["columns"] == ["attributes"] and options["streaming"]  # and no pictures
        return [{"attributes": row} for row in OFFICIAL[::-1].astype(int).tolist()]

    write_pictures(root / "copy", {f"{chr(97 + i)}.png": i for i in range(12)})
    monkeypatch.setattr(datasets, "load_dataset", serve)
    with pytest.raises(ValueError, match=config_module.CELEBA_HQ):
        CelebAHQ(root / "copy", None, 32)

    def be_away(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", be_away)
    with pytest.raises(ConnectionError, match=ATTRIBUTE_FILE):
        CelebAHQ(root / "copy", None, 32)


# --- a person's own pictures ---


def mine(root: Path, table: str, name: str = "metadata.csv") -> Path:
    write_pictures(root / "mine", {f"{i}.jpg": 500 + i for i in range(10)})
    (root / "mine" / name).write_text(table, encoding="utf-8")
    return root / "mine"


def test_own_captions_are_used_as_they_are(root: Path) -> None:
    rows = [f'{9 - i},{i}.jpg,"Aunt Ada, number {i}"' for i in range(10)]
    faces = CelebAHQ(mine(root, "\n".join(["number,file_name,caption", *rows])), None, 32)
    assert not faces.has_attributes and faces[0].attributes is None
    assert faces.split_kind == "chance" and np.bincount(faces.splits).tolist() == [6, 2, 2]
    for position, name in enumerate(faces.names):
        caption = faces.caption(position, wording=position, seed=position)
        assert caption.text == f"Aunt Ada, number {name[0]}" and caption.stated == {}


def test_several_captions_of_a_picture_are_used_in_turn(root: Path) -> None:
    rows = [{"file_name": f"{i}.jpg", "text": [f"one {i}", f"two {i}"]} for i in range(10)]
    folder = mine(root, "\n".join(map(json.dumps, rows)), "metadata.jsonl")
    faces = CelebAHQ(folder, None, 32)
    texts = [faces.caption(3, wording).text for wording in range(4)]
    assert texts == ["one 3", "two 3", "one 3", "two 3"]
    (folder / "metadata.jsonl").unlink()
    pairs = [f"{i}.jpg,{word} {i}" for word in ("one", "two") for i in range(10)]
    with pytest.raises(ValueError, match=r"two rows for 0\.jpg"):
        CelebAHQ(mine(root, "\n".join(["file_name,caption", *pairs])), None, 32)


@pytest.mark.parametrize(
    "row", [{"caption": 7}, {"caption": {"en": "a man"}}, {"caption": [["a man"]]}]
)
def test_a_caption_that_is_no_text_is_refused(root: Path, row: dict) -> None:
    rows = [
        {"file_name": f"{i}.jpg", "caption": "a man"} | (row if i == 3 else {}) for i in range(5)
    ]
    with pytest.raises(ValueError, match=r"3\.jpg: a caption"):
        CelebAHQ(mine(root, "\n".join(map(json.dumps, rows)), "metadata.jsonl"), None, 32)


@pytest.mark.parametrize("wrong", [None, [1] * 39, 1])
def test_a_list_of_attributes_that_is_none_is_named(root: Path, wrong: object) -> None:
    rows = [{"file_name": f"{i}.jpg", "attributes": [1] * 40} for i in range(5)]
    rows[3]["attributes"] = wrong
    with pytest.raises(ValueError, match=r"3\.jpg"):
        CelebAHQ(mine(root, "\n".join(map(json.dumps, rows)), "metadata.jsonl"), None, 32)


def test_texts_are_taken_as_they_stand(root: Path) -> None:
    """Quotes after a space, a number with zeros, another case in the header, an empty last row."""
    rows = ['0.jpg, "007, the agent"', "1.jpg,007", "2.jpg,NA", ","]
    faces = CelebAHQ(mine(root, "\n".join(["file_name, Caption", *rows])), None, 32)
    assert [faces.caption(i).text for i in range(len(faces))] == ["007, the agent", "007", "NA"]


def test_own_words_come_before_the_attributes_of_the_official_folder(root: Path) -> None:
    names = [f"{i}.jpg" for i in range(10)]
    write_pictures(root / "hq" / "CelebA-HQ-img", {name: i for i, name in enumerate(names)})
    write_annotation(root / "hq", list(range(10)))
    rows = [f"CelebA-HQ-img/{name},my {name}" for name in names]
    (root / "hq" / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]))
    faces = CelebAHQ(root / "hq", None, 32)
    assert [faces.caption(i).text for i in range(3)] == ["my 0.jpg", "my 1.jpg", "my 2.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_what_is_no_file_or_has_no_readable_name_is_left_out_by_name(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = mine(root, "\n".join(["file_name,caption", *(f"{i}.jpg,face {i}" for i in range(11))]))
    (folder / "10.jpg").symlink_to(folder / "gone.jpg")
    odd = os.fsencode(folder) + b"/caf\xe9.jpg"
    Path(os.fsdecode(odd)).write_bytes((folder / "0.jpg").read_bytes())
    assert len(CelebAHQ(folder, None, 32)) == 10
    said = capsys.readouterr().out
    assert "10.jpg: a link" in said and "UTF-8" in said


def test_folders_that_divide_may_lie_deeper(root: Path) -> None:
    rows = []
    for split in ("train", "val", "test"):
        write_pictures(root / "mine" / "images" / split, {f"{split}.jpg": 500})
        rows.append(f"images/{split}/{split}.jpg,{split}")
    (root / "mine" / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]))
    faces = CelebAHQ(root / "mine", None, 32)
    assert faces.split_kind == "own" and faces.counts == {"train": 1, "val": 1, "test": 1}


def test_own_folders_divide_own_pictures(root: Path) -> None:
    for split, count in (("train", 4), ("validation", 2), ("test", 1)):
        place = root / "mine" / split
        write_pictures(place, {f"{split}{i}.jpg": 500 + i for i in range(count)})
        table = {"file_name": [f"{split}{i}.jpg" for i in range(count)], "caption": split}
        pd.DataFrame(table).to_csv(place / "metadata.csv", index=False)
    faces = CelebAHQ(root / "mine", None, 32)
    assert faces.split_kind == "own" and faces.counts == {"train": 4, "val": 2, "test": 1}
    for position, face in enumerate(faces):
        said = faces.caption(position).text
        assert said.startswith(face.split) and faces.names[position].startswith(said)


def test_folders_that_do_not_divide_all_pictures_are_told(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    places = ("train/0.jpg", "train/1.jpg", "test/2.jpg", "3.jpg")
    write_pictures(root / "mine", {name: 500 + i for i, name in enumerate(places)})
    table = pd.DataFrame({"file_name": places, "caption": "a man"})
    table.to_csv(root / "mine" / "metadata.csv", index=False)
    assert CelebAHQ(root / "mine", None, 32).split_kind == "chance"
    said = capsys.readouterr().out
    assert all(name in said for name in ("train", "test", "3.jpg"))


def test_a_name_with_an_accent_is_found_however_it_is_written(root: Path) -> None:
    """macOS writes an accented letter as two characters."""
    folder = mine(root, "file_name,caption\nJos\u00e9.jpg,a man\n0.jpg,a man\n1.jpg,a man")
    write_pictures(folder, {"Jose\u0301.jpg": 520})
    assert len(CelebAHQ(folder, None, 32)) == 3


def test_json_is_read_as_carefully_as_csv(root: Path) -> None:
    """As Windows writes it, with a mark before the first line; a blank caption is none."""
    texts = ["", " ", *["a man"] * 8]
    rows = [json.dumps({"file_name": f"{i}.jpg", "text": text}) for i, text in enumerate(texts)]
    assert len(CelebAHQ(mine(root, "\ufeff" + "\n".join(rows), "metadata.jsonl"), None, 32)) == 8


def test_what_is_left_out_is_listed_with_its_reason(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [*(f"{i}.jpg,a man" for i in range(8)), "8.jpg,", "photo.HEIC,a man", "gone.jpg,a man"]
    folder = mine(root, "\n".join(["file_name,caption", *rows]))
    (folder / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    assert len(CelebAHQ(folder, None, 32)) == 8
    said = capsys.readouterr().out
    for name in ("8.jpg", "9.jpg", "photo.HEIC", "gone.jpg"):
        assert name in said


def test_own_attributes_make_captions(root: Path) -> None:
    folder = root / "mine"
    write_pictures(folder, {f"{i}.jpg": 500 + i for i in range(10)})
    write_metadata(folder, [f"{i}.jpg" for i in range(10)], OFFICIAL[:10])
    faces = CelebAHQ(folder, None, 32)
    assert np.array_equal(faces.attributes, OFFICIAL[:10]) and faces.caption(2).stated
    table = pd.read_csv(folder / "metadata.csv")
    table.drop(columns="Bald").to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(ValueError, match="Bald"):
        CelebAHQ(folder, None, 32)


def test_a_split_by_chance_is_the_same_everywhere() -> None:
    names = [f"{i}.jpg" for i in range(500)]
    splits = dict(zip(names, split_by_chance(names), strict=True))
    assert np.bincount(list(splits.values())).tolist() == [400, 50, 50]
    again = dict(zip(names[::-1], split_by_chance(names[::-1]), strict=True))
    assert splits == again
    assert np.bincount(split_by_chance(names[:3])).tolist() == [1, 1, 1]
    assert np.bincount(split_by_chance(names[:150])).tolist() == [90, 30, 30]
    assert np.bincount(split_by_chance(names[:250])).tolist() == [170, 40, 40]


@pytest.mark.parametrize(("before", "after"), [(150, 210), (190, 200), (380, 420), (50, 5000)])
def test_pictures_that_are_added_do_not_turn_trained_ones_into_held_out_ones(
    before: int, after: int
) -> None:
    """A run that starts from the weights of the smaller set would be measured on what it knows."""
    names = [f"{i}.jpg" for i in range(after)]
    smaller, larger = (
        dict(zip(n, split_by_chance(n), strict=True)) for n in (names[:before], names)
    )
    trained = [name for name in smaller if smaller[name] == 0]
    assert sum(larger[name] > 0 for name in trained) <= 0.05 * len(trained)


# --- the annotation file ---


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-200], lambda text: text.replace(" -1", " 5", 1)]
)
def test_a_damaged_annotation_file_is_named(tmp_path: Path, damage: Callable[[str], str]) -> None:
    write_annotation(tmp_path, [0, 2, 7])
    path = tmp_path / ATTRIBUTE_FILE
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=ATTRIBUTE_FILE):
        read_attributes(path)


# --- real faces, where they are at hand ---


def test_the_real_folder(real_faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    faces = CelebAHQ(real_faces, None, 64)
    assert faces.counts == {"train": 8000, "val": 998, "test": 996}
    lines = (real_faces / ATTRIBUTE_FILE).read_text().splitlines()
    for position in (0, 4321, 9900):
        face = faces[position]
        name, *values = lines[2 + face.index].split()
        assert name == f"{face.index}.jpg" == faces.names[position]
        assert face.attributes.tolist() == [value == "1" for value in values]
    published = read_attributes(real_faces / ATTRIBUTE_FILE)[1]
    assert np.array_equal(attribute_digests(published), recognition.known_digests())


def test_real_faces_are_recognised(
    real_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published face has the table's hash; that of a copy is near, of another picture far."""
    monkeypatch.undo()
    for path in sorted((real_faces / IMAGE_FOLDER).iterdir())[::400]:
        index = int(path.stem)
        distance = np.bitwise_count(perceptual_hash(path) ^ recognition.known_hashes()[index]).sum()
        assert distance <= 4  # 0 where JPEG is decoded at its full size
        with Image.open(path) as image:
            image.resize((128, 128)).save(tmp_path / "copy.jpg", quality=60)
        seen = recognition.recognise(perceptual_hash(tmp_path / "copy.jpg"))
        assert seen == index or sorted((seen, index)) in PAIRS
    blots(1).save(tmp_path / "other.png")
    assert recognition.recognise(perceptual_hash(tmp_path / "other.png")) == recognition.UNKNOWN
