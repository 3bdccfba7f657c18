"""The pictures that are judged: a run's own, or a folder of pictures made elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from config import Config
from custom_datasets.captions import Caption
from evaluation import sets
from evaluation.folder import open_folder, read_captions
from evaluation.sets import FaceImages, FileImages
from inference.picture_sets import Request, generate_set
from inference.text_to_face import TextToFace
from training import checkpoints

CAPTIONS = "of the test faces: one wording of each, then another wording of each"


@dataclass(frozen=True)
class Subject:
    """Pictures to be judged, and what is known of how they came to be."""

    count: int
    captions: list[Caption]  # one a picture; empty where they are not known
    open: Callable[[], FileImages]  # makes what is missing
    made: dict[str, object]  # how, for the protocol
    described: np.ndarray | None  # (N,) the test face that each caption describes, where known
    model: TextToFace | None = None  # None: they were made elsewhere
    request: Request | None = None


def own_pictures(config: Config, test: FaceImages, folder: Path, device: torch.device) -> Subject:
    """The pictures of the preset's newest checkpoint, for captions of test faces.

    Args:
        folder: the pictures' folders are made in it.

    Raises:
        FileNotFoundError, ValueError: see `checkpoints.require_checkpoint` and `TextToFace`.
    """
    checkpoint = checkpoints.require_checkpoint(config.run_folder)
    drawn_by = (
        f"models.decoder={config.models.decoder}",
        f"data.picture_size={config.data.picture_size}",
    )
    model = TextToFace.from_run(checkpoint, device, drawn_by)
    model.config = replace(model.config, sampling=config.sampling)
    captions = test.captions(config.evaluation.count)
    name = checkpoints.identity(checkpoint)
    request = sets.request_for(captions, model, config.sampling, name)
    return Subject(
        count=len(captions),
        captions=captions,
        open=lambda: generate_set(model, request, folder),
        made=request.protocol() | {"captions": CAPTIONS},
        described=np.arange(len(captions)) % len(test),
        model=model,
        request=request,
    )


def pictures_of_a_folder(
    config: Config, test: FaceImages, folder: Path, captions: Path | None
) -> Subject:
    """All images of a folder, with the captions of a file where one is given.

    Raises:
        FileNotFoundError, ValueError: see `folder.open_folder` and `folder.read_captions`.
    """
    images = open_folder(folder, config.picture_size)
    for path in images.damaged:
        print(f"left out, as it cannot be read: {path}")
    asked = read_captions(captions, images) if captions else []
    made = {
        "model": f"pictures of {folder.resolve()}, made elsewhere",
        "n": len(images),
        "format": f"{images.formats}; read as RGB at {config.picture_size} px",
        "left_out": [path.name for path in images.damaged],
        "captions": str(captions) if captions else "not given",
    }
    return Subject(len(images), asked, lambda: images, made, faces_described(asked, test))


def faces_described(captions: Sequence[Caption], test: FaceImages) -> np.ndarray | None:
    """The test face whose caption each is, (N,); None if any is of other words than ours."""
    wordings = -(-len(captions) // len(test))
    own = test.captions(wordings * len(test))
    places = {caption.text: number % len(test) for number, caption in enumerate(own)}
    found = [places.get(caption.text) for caption in captions]
    return None if not found or None in found else np.array(found)
