"""Opens an evaluation: the faces, the pictures or the model that makes them, the networks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from config import Config
from custom_datasets.captions import Caption
from custom_datasets.opening import open_faces
from custom_datasets.splits import SPLIT_KINDS
from evaluation import sets
from evaluation.estimate import MIN_CLUSTERS
from evaluation.folder import captions_of, open_folder
from evaluation.networks import Networks, open_networks
from evaluation.session import Evaluation
from evaluation.sets import FaceImages
from inference.opening import find_run
from inference.picture_sets import generate_set, key_of
from inference.text_to_face import TextToFace
from models.loading import fingerprint
from training.processes import main_process_first
from training.run_folder import describe_environment


def open_evaluation(
    config: Config,
    device: torch.device,
    pictures: Path | None = None,
    captions: Path | None = None,
    checkpoint: str = "newest",
) -> Evaluation:
    """Open everything, and make the pictures that are missing.

    Args:
        pictures: a folder of pictures made elsewhere, to be judged in place of the run's own.
        captions: a table of what they were asked for, see `captions.read_captions`.
        checkpoint: which of the run, see `checkpoints.find`.

    Raises:
        FileNotFoundError, ValueError: no faces, no checkpoint, no or too few pictures; says what to
            do.
    """
    if captions and not pictures:
        raise ValueError(f"--captions {captions} are those of --pictures: name its folder as well")
    with main_process_first(PartialState(), "opening the faces"):
        faces = open_faces(config, None, config.picture_size)
    names = {"train": "train", "heldout": "val", "test": "test"}
    parts = {name: sets.in_random_order(faces, split) for name, split in names.items()}
    test = parts["test"]
    given = _pictures_of_a_folder(config, pictures, captions, test) if pictures else None
    n = len(given["pictures"]) if given else config.evaluation.count
    if n < MIN_CLUSTERS:
        raise ValueError(f"{n} pictures: nothing is measured of fewer than {MIN_CLUSTERS}")
    networks = open_networks(config, device)
    made = given or own_pictures(config, test, device, checkpoint)
    model = made.get("model")
    protocol = made.pop("protocol") | _protocol(config, networks, parts)
    protocol["environment"] = describe_environment(device, model.precision if model else "no")
    name = f"{made.pop('name')}-n_{n}-{key_of(made['pictures'].key, protocol)}"
    plan, workers = config.evaluation, config.data.loader_workers
    common = (plan, config.output_folder, device, workers, name)
    return Evaluation(*common, **parts, networks=networks, protocol=protocol, **made)


def _protocol(
    config: Config, networks: Networks, parts: Mapping[str, FaceImages]
) -> dict[str, Any]:
    """What determines the numbers beside the pictures."""
    plan, judge = config.evaluation, networks.judge
    return {
        "preset": config.name,
        "image_size": config.picture_size,
        "reference": plan.reference,
        "faces": {name: [len(images), images.key] for name, images in parts.items()},
        "split": SPLIT_KINDS[parts["test"].faces.split_kind],
        "networks": [*networks.spaces, *networks.clips],
        "judge": fingerprint(judge) if judge else None,
        "min_balanced_accuracy": plan.min_balanced_accuracy,
        "sweep": [plan.sweep_count, plan.sweep_scales, plan.sweep_steps],
    }


def own_pictures(
    config: Config, test: FaceImages, device: torch.device, checkpoint: str = "newest"
) -> dict[str, Any]:
    """The pictures of the run, or of the weights that ship, one for each caption of a test face."""
    drawn_by = (
        f"models.decoder={config.models.decoder}",
        f"data.picture_size={config.data.picture_size}",
    )
    model = TextToFace.from_run(find_run(config), device, drawn_by, checkpoint)
    model.config = replace(model.config, sampling=config.sampling)
    count, how = config.evaluation.count, config.sampling
    captions = test.captions(count)
    # Where the data has no attributes, nothing is asked for: the pictures of the empty caption.
    texts = [each.text for each in captions] or [""] * count
    request = sets.request_for(texts, model, how, model.identity)
    return {
        "pictures": generate_set(model, request, config.output_folder / "generated"),
        "captions": captions,
        "described": np.arange(count) % len(test) if captions else None,
        "model": model,
        "request": request,
        "protocol": request.protocol(),
        "name": f"guidance_{how.guidance_scale:g}-steps_{how.steps}",
    }


def _pictures_of_a_folder(
    config: Config, folder: Path, table: Path | None, test: FaceImages
) -> dict[str, Any]:
    """All images of a folder, with the captions of a table where one is given."""
    images = open_folder(folder, config.picture_size)
    captions = captions_of(images, table) if table else []
    return {
        "pictures": images,
        "captions": captions,
        "described": _faces_described(captions, test),
        "protocol": {"pictures": str(folder.resolve()), "captions": str(table)},
        "name": folder.resolve().name,
    }


def _faces_described(captions: Sequence[Caption], test: FaceImages) -> np.ndarray | None:
    """The test face whose caption each is, (N,); None if any is of other words than ours."""
    wordings = -(-len(captions) // len(test))
    own = test.captions(wordings * len(test))
    faces = {caption.text: number % len(test) for number, caption in enumerate(own)}
    found = [faces.get(caption.text) for caption in captions]
    return None if not found or None in found else np.array(found)
