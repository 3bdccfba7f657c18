"""Does the picture fit the words? CLIP score, between captions of others and real faces.

A score alone says little: those of faces lie in a narrow band. `real` are the faces that the
captions describe, the control are the same pictures with captions of others. A CLIP whose text
tower conditions the model judges its own words: score with another one as well.
"""

import numpy as np
from torch import Tensor
from torch.nn.functional import cosine_similarity

from evaluation.estimate import NotMeasured, jackknife
from evaluation.networks import clip_image_features, text_features
from evaluation.session import Evaluation
from evaluation.table import CONTROL, GENERATED, REAL, Table, row


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) of each image with its caption, (N,): Hessel et al. 2021 as torchmetrics."""
    return 100 * cosine_similarity(images, texts).clamp(min=0)


def others(faces: np.ndarray) -> np.ndarray:
    """For each slot that of another face, (N,), at random: the shuffled control.

    Raises:
        NotMeasured: one face has more than half of all slots.
    """
    _, unit, sizes = np.unique(faces, return_inverse=True, return_counts=True)
    if 2 * sizes.max() > len(faces):
        raise NotMeasured("more than half of the captions describe one face: no others to compare")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(faces))
    order = order[np.argsort(rng.permutation(len(sizes))[unit[order]], kind="stable")]
    found = np.empty_like(order)
    found[order] = np.roll(order, sizes.max())  # past all slots of a face
    return found


def scores(
    space: str,
    images: Tensor,
    texts: Tensor,
    faces: np.ndarray,
    order: np.ndarray,
    real: Tensor | None,
) -> Table:
    """CLIP scores with intervals over faces.

    Args:
        images, texts: features (N, D) of one CLIP, one image a caption.
        faces: (N,) the independent unit of each caption, such as the face that it describes.
        order: (N,) the slot of another caption for each, see `others`.
        real: image features (N, D) of those faces.
    """
    sets = {GENERATED: clip_scores(images, texts)}
    if real is not None:
        sets[REAL] = clip_scores(real, texts)
    sets[CONTROL] = clip_scores(images, texts[order])
    table: Table = []
    for name, found in sets.items():
        mean = jackknife(lambda rows, x=found: float(x[rows].mean()), faces)
        table.append(row("clip_score", space, name, *mean))
    return table


def answer(evaluation: Evaluation) -> Table:
    """The scores of every CLIP that judges."""
    table: Table = []
    texts = [caption.text for caption in evaluation.require_captions()]
    order = others(evaluation.asked)
    for clip in evaluation.networks.clips.values():
        network = clip_image_features(clip)
        images, real = evaluation.features(network, evaluation.pictures), None
        if evaluation.knows_faces:
            real = evaluation.features(network, evaluation.test)[evaluation.described]
        words = text_features(clip, texts, evaluation.device)
        table += scores(network.name, images, words, evaluation.clusters, order, real)
        evaluation.notes[f"clip_score {network.name}"] = clip_scores(images, words)
    return table
