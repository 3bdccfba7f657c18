"""The measurement protocol, stored with every number, since papers differ in each item."""

from typing import Any

from config import Config
from evaluation import sets
from evaluation.sets import FaceImages

REFERENCES = {
    "test": "the test split",
    "train": "the whole train split",
    "all": "all faces of the data",
}


def protocol_of(
    config: Config,
    made: dict[str, object],
    faces: dict[str, FaceImages],
    split: str,
    environment: dict[str, str],
) -> dict[str, Any]:
    """Everything that determines the numbers, apart from the networks.

    Args:
        made: how the pictures came to be.
        split: what keeps the splits apart, see `splits.SPLIT_KINDS`.
    """
    reference = config.evaluation.reference
    return made | {
        "preset": config.name,
        "image_size": config.picture_size,
        "reference": f"{REFERENCES[reference]}, {len(faces[reference])} faces",
        "split": split,
        "faces": {name: len(images) for name, images in faces.items()},
        "order": f"captions, sets and controls are shuffled once, with seed {sets.ORDER_SEED}",
        "data_format": "as in the data's files, read as RGB uint8, the shorter side resized to "
        f"{config.picture_size} px (bilinear, antialiased) and centre-cropped",
        "environment": environment,
    }
