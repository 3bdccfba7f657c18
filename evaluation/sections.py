"""The questions of an evaluation, in order.

Each function takes the opened evaluation, measures, writes its numbers and returns the lines to
print. All processes make pictures and extract features; only the main process computes numbers and
returns lines.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from evaluation import alignment, attributes, memorization, report
from evaluation.alignment import AlignmentReport, text_features
from evaluation.composition import composition as compare_shares
from evaluation.composition import table_lines as composition_lines
from evaluation.copying_spaces import space_note
from evaluation.denoising import denoising_loss
from evaluation.features import Clip, clip_image_features
from evaluation.loss_gap import loss_gap
from evaluation.loss_gap import table_lines as loss_gap_lines
from evaluation.memorization import CopyingReport
from evaluation.networks import JUDGE
from evaluation.session import Evaluation
from evaluation.sets import ImageSet, Mirrored, read, request_for
from evaluation.stated_share import stated_counts
from evaluation.sweep import SweepRow, sweep, sweep_settings
from inference.picture_sets import generate_set

# Of the comparison of losses: enough to tell a model that memorised, at a quarter of the cost of
# the pictures. Memorisation shows at middle noise first.
NOISE_LEVELS, LOSS_FACES, LOSS_DRAWS = (0.2, 0.4, 0.6, 0.8), 300, 2
LOOKED_AT = 64  # pictures, before any is measured
MEASURED = (
    *("distribution", "clip_score", "attribute_consistency", "composition", "copying"),
    *("memorization_by_loss", "sweep"),
)


def pictures(evaluation: Evaluation) -> list[str]:
    """What is judged? Makes the pictures, and refuses what could only be scored wrongly."""
    made, test = evaluation.pictures, evaluation.faces["test"]
    evaluation.reconstructed(test)  # to be shown beside them
    few, real = (read(images, range(min(len(images), LOOKED_AT))) for images in (made, test))
    try:
        report.check_set(few, real, "generated")
    except ValueError as error:
        for section in MEASURED:
            evaluation.results.leave_out(section, str(error))
    return [f"{name:>18}  {value}" for name, value in evaluation.subject.made.items()]


def distribution(evaluation: Evaluation) -> list[str]:
    """How close is the set to real faces, in each feature space?"""
    results, lines = evaluation.results, []
    for name, network in evaluation.networks.spaces.items():
        if results.lacks("distribution", name):
            continue
        reference, compared, apart = _compared(evaluation, name)
        features, control = (
            {key: evaluation.features(network, images) for key, images in group.items()}
            for group in (compared, apart)
        )
        real = evaluation.features(network, reference)
        compare = partial(report.compare_sets, network, real, features, control)
        comparison = results.measure("distribution", name, compare)
        evaluation.note_features(name, network, reference)
        lines += [*report.distribution_lines(comparison), ""] if comparison else []
    return lines


def _compared(
    evaluation: Evaluation, space: str
) -> tuple[ImageSet, dict[str, ImageSet], dict[str, ImageSet]]:
    """The reference of a feature space, the sets to compare with it, and the control apart.

    In the judge's own space the reference is the test split: the judge was trained on train faces,
    whose features differ from those of unseen faces.
    """
    choice = "test" if space == JUDGE else evaluation.config.evaluation.reference
    heldout, control = evaluation.faces["val"], evaluation.untrained
    compared = {}
    if choice != "all" and len(heldout) >= report.LEAST:
        decoded = evaluation.reconstructed(heldout)
        compared = {report.FLOOR: heldout} | ({report.RECONSTRUCTED: decoded} if decoded else {})
    apart = {report.UNTRAINED: control} if control and len(control) >= report.LEAST else {}
    return evaluation.faces[choice], compared | {report.GENERATED: evaluation.pictures}, apart


def clip_score(evaluation: Evaluation) -> list[str]:
    """Does the picture fit the words?"""
    results, subject, lines = evaluation.results, evaluation.subject, []
    described = subject.described
    texts = [caption.text for caption in subject.captions]

    def score(name: str, clip: Clip, seen: Tensor, faces: Tensor) -> AlignmentReport:
        words = text_features(clip, texts, device=evaluation.device)
        evaluation.note_samples({f"CLIP score, {name}": alignment.clip_scores(seen, words)})
        real = None if described is None else faces[torch.from_numpy(described)]
        return alignment.alignment_report(seen, words, real, described)

    for name, clip in evaluation.networks.clips.items():
        if results.lacks("clip_score", name):
            continue
        network = clip_image_features(clip)
        seen = evaluation.features(network, evaluation.pictures)
        faces = evaluation.features(network, evaluation.faces["test"])
        measured = results.measure("clip_score", name, partial(score, name, clip, seen, faces))
        lines += alignment.table_lines(name, measured) if measured else []
    return lines


def attribute_consistency(evaluation: Evaluation) -> list[str]:
    """Does the picture show what was asked?"""
    results, subject, test = evaluation.results, evaluation.subject, evaluation.faces["test"]
    if evaluation.networks.judge:  # it judges without captions too
        results.add("judge", "", evaluation.networks.judge_facts)
    if results.lacks("attribute_consistency"):
        return []
    predicted, described = evaluation.decided(evaluation.pictures), subject.described
    sets = {"real": test, "reconstructed": evaluation.reconstructed(test)}
    ceilings = {
        name: evaluation.decided(images)[described]
        for name, images in sets.items()
        if images is not None and described is not None
    }
    stated = [caption.stated for caption in subject.captions]
    measure = partial(
        attributes.attribute_report,
        *(predicted, stated, evaluation.reliable),
        faces=described,
        **ceilings,
    )
    consistency = results.measure("attribute_consistency", "", measure)
    counts = stated_counts(predicted, stated, evaluation.reliable)
    evaluation.note_samples({name: torch.from_numpy(n) for name, n in counts._asdict().items()})
    return attributes.table_lines(consistency) if consistency else []


def composition(evaluation: Evaluation) -> list[str]:
    """Are the pictures of the same kinds of faces as the real ones?"""
    results = evaluation.results
    if results.lacks("composition"):
        return []
    seen = [
        evaluation.decided(images) for images in (evaluation.pictures, evaluation.faces["test"])
    ]
    compare = partial(compare_shares, *seen, evaluation.reliable)
    found = results.measure("composition", "", compare)
    return composition_lines(found) if found else []


def copying(evaluation: Evaluation) -> list[str]:
    """Is it copied from the training set, and is it one face again and again?"""
    results, lines = evaluation.results, []
    if results.lacks("copying"):
        return []
    train = evaluation.faces["train"]
    for name, network in evaluation.networks.for_copying().items():
        sets = [evaluation.pictures, train, evaluation.faces["test"]]
        if evaluation.config.data.flip:  # the training set holds each face in a mirror as well
            sets.append(Mirrored(train))
        features = [evaluation.features(network, images) for images in sets]
        found = results.measure("copying", name, partial(memorization.copying_report, *features))
        lines += [f"in {space_note(network)}:", *_copying_lines(found)] if found else []
    return lines


def _copying_lines(found: CopyingReport) -> list[str]:
    twins, repeats = found.distinctness.twins, found.distinctness.repeats
    excess = {"as one in a hundred faces": found.copied, "at half of that": found.near_identical}
    return [
        f"  median distance to the training set, generated / held-out: {found.median_ratio:.2f}",
        *(
            f"  close to training faces alone, {name}: {e.generated.value:.1%} "
            f"[{e.generated.low:.1%}, {e.generated.high:.1%}]; held-out {e.control.value:.1%}"
            for name, e in excess.items()
        ),
        f"  closer than any held-out face: {len(found.closer_than_control)}",
        f"  with a twin in the set: {twins.value:.1%} [{twins.low:.1%}, {twins.high:.1%}]",
        f"  that repeat another picture: {repeats}",
        f"  verdict: copies: {found.copies}; repeats itself: {found.distinctness.repeated}",
    ]


def memorization_by_loss(evaluation: Evaluation) -> list[str]:
    """Does the model denoise the faces it was trained on better than others?"""
    results, model, faces = evaluation.results, evaluation.subject.model, evaluation.faces
    if results.lacks("memorization_by_loss"):
        return []
    workers = evaluation.config.data.loader_workers
    sides = [
        (denoising_loss(model, images, workers), len(images))
        for images in (faces["train"], faces["test"])
    ]
    count = model.objective.num_train_timesteps
    timesteps = [round(count * level) for level in NOISE_LEVELS]
    found = results.measure(
        "memorization_by_loss",
        "",
        lambda: loss_gap(*sides, timesteps, faces=LOSS_FACES, draws=LOSS_DRAWS),
    )
    return loss_gap_lines(found) if found else []


def guidance_and_steps(evaluation: Evaluation) -> list[str]:
    """What do guidance and steps do, at the same captions and seeds?"""
    results, subject, config = evaluation.results, evaluation.subject, evaluation.config
    if results.lacks("sweep"):
        return []
    captions = subject.captions[: config.evaluation.sweep_count]
    network = evaluation.networks.for_sweep()
    settings = sweep_settings(config.sampling, config.evaluation)
    seen = {}
    for setting in settings:
        pictures = evaluation.pictures
        if setting != config.sampling:  # of which there are pictures already
            request = request_for(captions, subject.model, setting, subject.request.model)
            pictures = generate_set(subject.model, request, config.output_folder / "generated")
        found = (evaluation.features(network, pictures), evaluation.decided(pictures))
        seen[setting] = [values[: len(captions)] for values in found]
    rows = sweep(
        settings=settings,
        generate=seen.__getitem__,
        extract=lambda found: found[0],
        decide=lambda found: found[1],
        reference=evaluation.features(network, evaluation.faces["test"]),
        stated=[caption.stated for caption in captions],
        reliable=evaluation.reliable,
    )
    facts = {"features": network.name, "n": len(captions)}
    found = results.measure("sweep", "", lambda: facts | {"rows": list(rows)})
    return [_sweep_line(row) for row in found["rows"]] if found else []


def _sweep_line(row: SweepRow) -> str:
    shown = f"{row.consistency.value:.1%}" if row.consistency else "too few to tell"
    return (
        f"guidance {row.guidance_scale:g}, {row.steps} steps: distance {row.distance.value:.3f} "
        f"[{row.distance.low:.3f}, {row.distance.high:.3f}], stated attributes shown {shown}"
    )


SECTIONS: dict[str, Callable[[Evaluation], list[str]]] = {
    "What is judged?": pictures,
    "How close is the set?": distribution,
    "Does the picture fit the words?": clip_score,
    "Does it show what was asked?": attribute_consistency,
    "Are they the same kinds of faces?": composition,
    "Is it copied?": copying,
    "Does the loss know the training faces?": memorization_by_loss,
    "What do guidance and steps do?": guidance_and_steps,
}
