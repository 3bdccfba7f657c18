"""Brings any copy of CelebA-HQ that carries attributes into the official folder form.

`python -m custom_datasets.importing SOURCE --out data/celeba_hq`, where SOURCE is a folder, a zip
archive or a hub id. One loader then reads all copies alike. Images are copied as they are; `copies`
lists the forms that are known.
"""

import argparse
import errno
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import files
from config import celeba_hq
from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    IMAGE_FOLDER,
    MAPPING_FILE,
    OFFICIAL_COUNT,
    image_number,
)
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.copies import recognise
from custom_datasets.hub import locate
from custom_datasets.official_folder import Written, write_faces
from custom_datasets.sources import UNFINISHED_FOLDER, Row, open_source
from custom_datasets.splits import ABOUT_FILE, SPLIT_KINDS
from custom_datasets.verification import (
    check_alignment,
    check_rates,
    known_of_celeba,
    known_of_count,
    known_of_indices,
)

WAYS = """Ways to CelebA-HQ with its 40 attributes (for non-commercial research only):
  1. The official folder, CelebAMask-HQ (github.com/switchablenorms/CelebAMask-HQ): unpack it, set
     CELEBA_HQ_DIR to the folder that holds CelebA-HQ-img and CelebAMask-HQ-attribute-anno.txt.
     Nothing has to be imported.
  2. From the hub: make data SOURCE=eurecom-ds/celeba-hq-256
  3. On Kaggle: add the data set ipythonx/celebamaskhq to the notebook.
  4. A copy that you have: make data SOURCE=<folder or zip archive>. Parquet with attributes;
     StarGAN v2's train|val/male|female; images by index with list_attr_celeba.txt (or .csv) and
     CelebA-HQ-to-CelebA-mapping.txt in it or beside it.
Copies with images or captions alone (Ryan-sjtu/celebahq-caption) cannot be used: the captions of
this experiment are made from attributes. CelebA that is not HQ (flwrlabs/celeba, img_align_celeba,
178x218) can, with python -m custom_datasets.importing SOURCE --celeba."""


def import_copy(
    source: str,
    out: Path,
    attribute_list: Path | None = None,
    mapping: Path | None = None,
    is_hq: bool = True,
) -> list[str]:
    """Import and verify a copy; returns what was found, as lines.

    Raises:
        FileExistsError: `out` holds something already.
        FileNotFoundError, ConnectionError: the copy, or a file that it needs, is not available.
        ValueError: no known form, or attributes that are not those of the images; `out` is not
            made.
    """
    if out.exists() and Path(source).expanduser().resolve() == out.resolve():
        return [f"{out} is read as it is: nothing has to be imported", *_verify_in_place(out)]
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(
            f"{out} is there already. {describe_folder(out)} Remove it, or name another folder "
            "with --out"
        )
    for option, path in (("--attributes", attribute_list), ("--mapping", mapping)):
        if path and not path.is_file():
            raise FileNotFoundError(f"{option} {path} is not a file that is there")
    copy = open_source(locate(source), attribute_list, mapping, is_hq)
    return import_rows(recognise(copy), out, source, is_hq)


def import_rows(rows: Iterable[Row], out: Path, source: str, is_hq: bool = True) -> list[str]:
    """Write rows into `out` and verify them; returns what was found, as lines.

    An interrupted import resumes when the same source is imported again.

    Raises:
        ValueError: see `import_copy`.
    """
    unfinished = _begin(out, source)
    try:
        written = write_faces(rows, unfinished, source, is_hq)
    except BaseException as error:
        if any((unfinished / IMAGE_FOLDER).glob("*.*")):
            print(f"{unfinished} keeps what was imported for a next attempt", file=sys.stderr)
        else:
            shutil.rmtree(unfinished)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            place = f"{unfinished}: make room, or name a folder on another disk with --out"
            raise OSError(errno.ENOSPC, f"no space left for {place}") from error
        raise
    try:
        lines = _verify(unfinished, written, is_hq)
    except ValueError:
        shutil.rmtree(unfinished)
        raise
    if out.is_dir():  # an empty one
        out.rmdir()
    unfinished.replace(out)
    files.sync_folder(out.parent)
    return lines


def _begin(out: Path, source: str) -> Path:
    """The folder that becomes `out`; what was imported from another source is removed."""
    unfinished = out.with_name(out.name + UNFINISHED_FOLDER)
    note = unfinished / ABOUT_FILE
    try:
        before = json.loads(note.read_text(encoding="utf-8")).get("source")
    except (OSError, ValueError, AttributeError):
        before = None  # missing or damaged
    if before != source and unfinished.exists():
        shutil.rmtree(unfinished)
    files.write_json(note, {"source": source})
    return unfinished


def _verify(folder: Path, written: Written, is_hq: bool) -> list[str]:
    """Open the folder as training does, and check attributes against images."""
    faces = CelebAHQ(folder, None, 64)
    if written.has_official_indices and is_hq:
        rates = check_rates(faces.attributes, known_of_indices(faces.indices))
    elif not is_hq:
        rates = check_rates(faces.attributes, known_of_celeba(len(faces)))
    else:
        rates = check_rates(faces.attributes, known_of_count(len(faces)))
    auc = _alignment(faces)
    kind = SPLIT_KINDS[written.split_kind]
    left_out = [f"  {name}: {why}" for name, why in written.left_out.items()]
    if left_out:
        left_out = [f"left out {len(left_out)}, as they cannot be used:", *left_out]
    return [f"{len(faces)} faces: {written.split_counts()} (split {kind})", *left_out, auc, *rates]


def _verify_in_place(folder: Path) -> list[str]:
    faces = CelebAHQ(folder, None, 64)
    is_official = not (folder / ABOUT_FILE).is_file() and faces.split_kind == "identity"
    rates = check_rates(faces.attributes, known_of_indices(faces.indices)) if is_official else []
    return [
        f"{len(faces)} faces (split {SPLIT_KINDS[faces.split_kind]})",
        _alignment(faces),
        *rates,
    ]


def _alignment(faces: CelebAHQ) -> str:
    auc = check_alignment([faces.path(i) for i in range(len(faces))], faces.attributes)
    return "too few faces to probe" if auc is None else f"sex read from thumbnails, AUC {auc:.2f}"


def describe_folder(folder: Path) -> str:
    """What a folder holds, and where the faces are if it is the folder above or below."""
    if folder.is_file():
        return f"{folder} is a file: import it with make data SOURCE={folder}."
    near = [folder.parent, *sorted(folder.glob("*/"))]
    official = next((place for place in near if _is_official(place)), None)
    if official and not _is_official(folder):
        return f"{folder} is not the folder that holds the faces: that is {official}."
    missing = [name for name in (IMAGE_FOLDER, ATTRIBUTE_FILE) if not (folder / name).exists()]
    if missing:
        return f"{folder} lacks {' and '.join(missing)}."
    names = (path.name for path in (folder / IMAGE_FOLDER).iterdir())
    count = sum(image_number(name) is not None for name in names)
    return f"{folder} holds {count} of {OFFICIAL_COUNT} images and their attributes."


def _is_official(folder: Path) -> bool:
    return all((folder / name).exists() for name in (IMAGE_FOLDER, ATTRIBUTE_FILE))


def main() -> None:
    """Import the copy named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m custom_datasets.importing", description=__doc__
    )
    home = celeba_hq().data_folder
    parser.add_argument(
        "source", nargs="?", help="folder, zip archive or hub id; none: how to get one"
    )
    parser.add_argument("--out", type=Path, default=home, help="default: %(default)s")
    parser.add_argument("--attributes", type=Path, help="CelebA's list_attr_celeba.txt or .csv")
    parser.add_argument("--mapping", type=Path, help=MAPPING_FILE)
    parser.add_argument("--celeba", action="store_true", help="the source is CelebA, not CelebA-HQ")
    given = parser.parse_args()
    try:
        if not given.source:
            print(describe_folder(given.out), WAYS, sep="\n\n")
            return
        with files.locked(given.out.parent / f".{given.out.name}.lock", wait=False):
            lines = import_copy(
                given.source, given.out, given.attributes, given.mapping, not given.celeba
            )
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
    except (OSError, ValueError, files.InUse) as error:
        raise SystemExit(f"not imported: {error}") from error
    print("\n".join(lines))
    if given.out.resolve() != home.resolve():
        print(f"CELEBA_HQ_DIR={given.out.resolve()}")


if __name__ == "__main__":
    main()
