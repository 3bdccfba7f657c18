"""Opens an evaluation: the faces, the pictures or the model that makes them, the networks."""

import os
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
from evaluation.networks import open_networks
from evaluation.session import Evaluation
from evaluation.sets import FaceImages
from evaluation.table import RECONSTRUCTED
from inference.opening import find_run
from inference.picture_sets import generate_set, key_of
from inference.text_to_face import TextToFace
from settings import Changes
from training.processes import main_process_first, require_same
from training.run_folder import describe_environment


def open_evaluation(
    config: Config,
    device: torch.device,
    changes: Changes = None,
    pictures: Path | None = None,
    captions: Path | None = None,
    checkpoint: str = "newest",
) -> Evaluation:
    """Open everything, and make the pictures that are missing.

    Args:
        config: a preset with `changes`; of a run's own pictures the name and the plan alone, as all
            else is the run's, with `changes`.
        pictures: a folder of pictures made elsewhere, to be judged in place of the run's own.
        captions: a table of what they were asked for, see `folder.captions_of`.
        checkpoint: which of the run, see `checkpoints.find`.

    Raises:
        FileNotFoundError, ValueError: no faces, no checkpoint, no or too few pictures; says what to
            do.
    """
    if captions and not pictures:
        raise ValueError(f"--captions {captions} are those of --pictures: name its folder as well")
    if captions and not captions.is_file():
        raise FileNotFoundError(f"--captions {captions}: there is no such file")
    model = None
    if not pictures:
        model = TextToFace.from_run(find_run(config), device, changes, checkpoint)
        require_same(model.identity, "the checkpoint")
        config = replace(model.config, name=config.name, evaluation=config.evaluation)
    with main_process_first(PartialState(), "opening the faces"):
        faces = open_faces(config, None, config.picture_size)
    names = {"train": "train", "validation": "val", "test": "test"}
    parts = {name: sets.in_random_order(faces, split) for name, split in names.items()}
    if empty := [name for name in ("train", "test") if not parts[name]]:
        raise ValueError(
            f"{faces.source} holds no face of the {empty[0]} split: pictures are compared with "
            "test faces, and copies looked for among training faces; divide the faces into both"
        )
    test = parts["test"]
    if pictures:
        made = _pictures_of_a_folder(config, pictures, captions, test)
    else:
        made = _own_pictures(config, test, model)
    without = _why_no_encoder(model) if model else {}
    networks, plan = open_networks(config, device, faces.has_attributes), config.evaluation
    # Compared here, as later one process may be alone: it draws the figures.
    require_same(sorted(networks.missing | without), "which networks are missing")
    protocol = made.pop("protocol") | {
        "preset": config.name,
        "image_size": config.picture_size,
        "reference": plan.reference,
        "faces": ", ".join(f"{len(part)} {name}" for name, part in parts.items()),
        "faces_key": key_of(*(part.key for part in parts.values())),
        "split": SPLIT_KINDS[faces.split_kind],
        "networks": [*networks.spaces, *networks.clips],
        "judge": networks.judge_weights,
        "min_balanced_accuracy": plan.min_balanced_accuracy,
        "sweep": [plan.sweep_count, plan.sweep_scales, plan.sweep_steps],
        "environment": describe_environment(device, model.precision if model else "no"),
    }
    key = key_of(made["pictures"].key, protocol)
    name = f"{made.pop('name')}-n_{len(made['pictures'])}-{key}"
    common = (plan, config.output_folder, device, config.data.loader_workers, name)
    made |= {"networks": networks, "protocol": protocol, "not_measured": without}
    return Evaluation(*common, **parts, **made)


def _why_no_encoder(model: TextToFace) -> dict[str, str]:
    """Empty, or the reason why real faces cannot be encoded: a decoder that ships alone makes
    pictures where its autoencoder is not at hand.
    """
    try:
        model.open_encoder()
    except FileNotFoundError as error:
        reason = str(error).partition("\n")[0]
        print(f"left out: {RECONSTRUCTED}: {reason}")
        return {RECONSTRUCTED: reason}
    return {}


def _own_pictures(config: Config, test: FaceImages, model: TextToFace) -> dict[str, Any]:
    """The pictures of a model, one for each caption of a test face."""
    count, how = config.evaluation.count, config.sampling
    captions = test.captions(count)
    request = sets.request_for([caption.text for caption in captions], how)
    pictures = generate_set(model, request, config.output_folder / "generated")
    place = Path(os.path.relpath(pictures.paths[0].parent, config.output_folder))
    return {
        "pictures": pictures,
        "names": [path.name for path in pictures.paths],
        "captions": captions,
        "described": np.arange(count) % len(test),
        "model": model,
        "request": request,
        "protocol": request.protocol(model) | {"pictures": place.as_posix()},
        "name": f"guidance_{how.guidance_scale:g}-steps_{how.steps}",
    }


def _pictures_of_a_folder(
    config: Config, folder: Path, table: Path | None, test: FaceImages
) -> dict[str, Any]:
    """All images of a folder, with the captions of a table where one is given."""
    images = open_folder(folder, config.picture_size)
    if len(images) < MIN_CLUSTERS:
        raise ValueError(
            f"{folder} holds {len(images)} pictures of one size: nothing is measured of fewer than "
            f"{MIN_CLUSTERS}"
        )
    texts = captions_of(images.names, table) if table else []
    # A caption of ours is known with what it states; any other is scored by CLIP alone.
    wordings = -(-max(len(texts), config.evaluation.count) // len(test))
    own = test.captions(wordings * len(test))
    faces = {caption.text: slot % len(test) for slot, caption in enumerate(own)}
    stated = {caption.text: caption for caption in own}
    described = [faces.get(text) for text in texts]
    return {
        "pictures": images,
        "names": images.names,
        "captions": [stated.get(text, Caption(text, {})) for text in texts],
        "described": None if not texts or None in described else np.array(described),
        "protocol": {"pictures": str(folder.resolve()), "captions": str(table)},
        "name": folder.resolve().name,
    }
