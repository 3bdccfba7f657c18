"""CelebA-HQ faces with their 40 attributes and the official split by identity.

Opens the official CelebAMask-HQ folder: `CelebA-HQ-img/<index>.jpg` of any size and
`CelebAMask-HQ-attribute-anno.txt`. The split of the 30,000 official faces ships with this file; a
folder that brings its own mapping and partition files (the drawn faces do) is split by those.
"""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

IMAGE_FOLDER = "CelebA-HQ-img"
ATTRIBUTE_FILE = "CelebAMask-HQ-attribute-anno.txt"
MAPPING_FILE = "CelebA-HQ-to-CelebA-mapping.txt"
PARTITION_FILE = "list_eval_partition.txt"
OFFICIAL_COUNT = 30_000
SPLITS = ("train", "val", "test")

ATTRIBUTES: tuple[str, ...] = tuple(
    (
        "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
        "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses "
        "Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache "
        "Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
        "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick "
        "Wearing_Necklace Wearing_Necktie Young"
    ).split()
)


@dataclass(frozen=True)
class Face:
    """One face: the image, what is known of it, and which split it belongs to."""

    image: torch.Tensor  # uint8 (3, H, W)
    attributes: np.ndarray  # bool (40,), in the order of ATTRIBUTES
    index: int
    split: str


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` (antialiased) and cut the middle square out."""
    if image.size != (size, size):
        image = transforms.center_crop(transforms.resize(image, [size], antialias=True), [size])
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB: upright by its EXIF tag, transparency over white, 16 bits scaled to 8.

    Pillow's own conversion ignores the tag, shows the colours that transparency hides, and clips
    16-bit values to white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64) / 257  # 65,535 becomes 255
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def read_image(path: Path, size: int) -> torch.Tensor:
    """Read one image of any size as uint8 RGB (3, size, size).

    Raises:
        ValueError: the file is missing, is not an image, or is far too large; the message names it.
    """
    try:
        with Image.open(path) as image:
            return transforms.pil_to_tensor(resize_and_crop(to_rgb(image), size))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read the image {path}: {error}. Remove it or fetch it anew."
        ) from error


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 [0, 255] -> float [-1, 1], the range that the autoencoders were trained on."""
    return images.float() / 127.5 - 1


def _read_lines(path: Path) -> list[str]:
    """Lines of a text file, with either kind of line end, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}. Fetch it anew.") from error


def read_attributes(path: Path) -> dict[int, np.ndarray]:
    """Read a CelebAMask-HQ attribute file into {index: bool (40,)}.

    Raises:
        ValueError: header, row length, values or the number of rows are not as announced; the line
            is named.
    """
    lines = _read_lines(path)
    if len(lines) < 2 or tuple(lines[1].split()) != ATTRIBUTES:
        raise ValueError(
            f"{path}: line 2 does not hold CelebA's 40 attribute names in their order. "
            f"Use the {ATTRIBUTE_FILE} that comes with CelebAMask-HQ."
        )
    rows: dict[int, np.ndarray] = {}
    for number, line in enumerate(lines[2:], start=3):
        name, *values = line.split() or [""]
        if not name:
            continue
        if (
            len(values) != len(ATTRIBUTES)
            or not set(values) <= {"-1", "1"}
            or not Path(name).stem.isdigit()
        ):
            raise ValueError(
                f"{path}:{number}: expected '<index>.jpg' and 40 values of -1 or 1: {line[:60]!r}"
            )
        index = int(Path(name).stem)
        if index in rows:
            raise ValueError(f"{path}:{number}: a second row for {name}")
        rows[index] = np.array(values) == "1"
    if not lines[0].strip().isdigit() or int(lines[0]) != len(rows):
        raise ValueError(f"{path}: line 1 announces {lines[0].strip()!r} rows, {len(rows)} follow")
    return rows


def official_split() -> np.ndarray:
    """The split of the 30,000 official indices: uint8 (30000,), 0 train, 1 val, 2 test.

    It is CelebA's partition through the CelebA-HQ mapping; no identity crosses from train to val or
    test.
    """
    text = (Path(__file__).parent / "celeba_hq_split.txt").read_text()
    return np.frombuffer("".join(text.split()).encode(), dtype=np.uint8) - ord("0")


def read_own_split(folder: Path) -> dict[int, int]:
    """Join a folder's mapping and partition files into {index: 0, 1 or 2}."""
    rows = (line.split() for line in _read_lines(folder / PARTITION_FILE))
    partition = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    split = {}
    for line in _read_lines(folder / MAPPING_FILE):
        row = line.split()
        if len(row) == 3 and row[0].isdigit():  # the file comes with or without a header line
            if row[2] not in partition:
                raise ValueError(
                    f"{folder / PARTITION_FILE} has no row for {row[2]}, named in {MAPPING_FILE}"
                )
            split[int(row[0])] = partition[row[2]]
    return split


def split_of(folder: Path, indices: Sequence[int]) -> np.ndarray:
    """The split number of each index: by the folder's own two files, else the official one."""
    if (folder / MAPPING_FILE).is_file() and (folder / PARTITION_FILE).is_file():
        own = read_own_split(folder)
        missing = [index for index in indices if index not in own]
        if missing:
            raise ValueError(
                f"{folder / MAPPING_FILE} has no row for {len(missing)} images, e.g. "
                f"{missing[0]}.jpg"
            )
        return np.array([own[index] for index in indices], dtype=np.uint8)
    beyond = [index for index in indices if index >= OFFICIAL_COUNT]
    if beyond:
        raise ValueError(
            f"{folder}: image {beyond[0]}.jpg is not one of CelebA-HQ's 0 to "
            f"{OFFICIAL_COUNT - 1}, and the folder has "
            f"no {MAPPING_FILE} with {PARTITION_FILE} to tell its split"
        )
    return official_split()[list(indices)]


class CelebAHQ(Dataset):
    """The faces of one split (or of all) in a CelebAMask-HQ folder.

    Attributes are held in memory, `attributes` bool (N, 40) and `indices` (N,); images are read on
    access.

    Raises:
        FileNotFoundError: the folder, its images or its attribute file are missing; says how to get
            them.
        ValueError: files that contradict each other, or a split without a face.
    """

    def __init__(self, folder: str | Path, split: str | None, image_size: int) -> None:
        self.folder, self.split, self.image_size = Path(folder), split, image_size
        if split is not None and split not in SPLITS:
            raise ValueError(
                f"unknown split {split!r}: choose one of {', '.join(SPLITS)} or None for all"
            )
        _require_layout(self.folder)
        rows = read_attributes(self.folder / ATTRIBUTE_FILE)
        names = (path.stem for path in (self.folder / IMAGE_FOLDER).glob("*.jpg"))
        # As "7.jpg" and nothing else: "07.jpg" or digits of other scripts would be another file.
        present = sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))
        unlabelled = [index for index in present if index not in rows]
        if unlabelled or not present:
            raise ValueError(
                f"{self.folder}: {len(unlabelled)} of {len(present)} images have no row in "
                f"{ATTRIBUTE_FILE}"
                + (
                    f", e.g. {unlabelled[0]}.jpg"
                    if unlabelled
                    else f"; {IMAGE_FOLDER} holds no <index>.jpg"
                )
            )
        splits = split_of(self.folder, present)
        chosen = np.ones(len(present), bool) if split is None else splits == SPLITS.index(split)
        if not chosen.any():
            raise ValueError(
                f"{self.folder}: none of its {len(present)} images belongs to the split {split!r}"
            )
        self.indices = np.array(present)[chosen]
        self.splits = splits[chosen]
        self.attributes = np.stack([rows[index] for index in self.indices])
        self.present_count, self.listed_count = len(present), len(rows)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Face:
        index = int(self.indices[position])
        image = read_image(self.path(position), self.image_size)
        return Face(image, self.attributes[position], index, SPLITS[self.splits[position]])

    def all_images(self, workers: int = 4) -> torch.Tensor:
        """All images in memory, uint8 (N, 3, S, S)."""
        paths = [self.path(position) for position in range(len(self))]
        with ThreadPoolExecutor(workers) as readers:
            return torch.stack(list(readers.map(read_image, paths, [self.image_size] * len(paths))))

    def without(self, positions: Sequence[int]) -> "CelebAHQ":
        """The same faces but those at these positions."""
        kept = np.setdiff1d(np.arange(len(self)), positions)
        fewer = copy.copy(self)
        fewer.indices, fewer.splits = self.indices[kept], self.splits[kept]
        fewer.attributes = self.attributes[kept]
        return fewer

    def path(self, position: int) -> Path:
        """Where the image at this position lies."""
        return self.folder / IMAGE_FOLDER / f"{self.indices[position]}.jpg"

    def __repr__(self) -> str:
        return (
            f"CelebAHQ({str(self.folder)!r}, split={self.split!r}): {len(self)} faces at "
            f"{self.image_size} px; "
            f"the folder holds {self.present_count} of {self.listed_count} images"
        )


def _require_layout(folder: Path) -> None:
    missing = [name for name in (IMAGE_FOLDER, ATTRIBUTE_FILE) if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"no CelebA-HQ at {folder.resolve()}: {' and '.join(missing)} missing. Unpack "
            "CelebAMask-HQ there "
            "(github.com/switchablenorms/CelebAMask-HQ), or say where it lies with "
            "CELEBA_HQ_DIR=/path/to/folder. "
            "To try everything without it: LDM_PRESET=demo."
        )
