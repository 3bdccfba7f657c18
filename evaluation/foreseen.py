"""What cannot be measured, known from counting before the first picture is made."""

from collections.abc import Mapping

from config import Config
from diffusion.sampling import build_sampler, set_timesteps
from evaluation import (
    alignment,
    attribute_rates,
    composition,
    loss_gap,
    memorization,
    report,
)
from evaluation.checks import TooFewSamples, require_enough
from evaluation.features import Clip
from evaluation.networks import Networks
from evaluation.results import Results
from evaluation.sets import FaceImages
from evaluation.subject import Subject
from evaluation.sweep import sweep_settings
from inference.text_to_face import TextToFace

LEAST_SWEPT = 40  # pictures a setting; fewer do not tell one setting from another
ELSEWHERE = "the pictures were made elsewhere, and no model is at hand"


def foresee(
    results: Results,
    config: Config,
    faces: Mapping[str, FaceImages],
    subject: Subject,
    networks: Networks,
) -> None:
    """Leave out of the results what has too few images, or lacks captions, a judge or a model.

    Raises:
        ValueError: the sampler cannot take a number of steps of the sweep.
    """
    if subject.model:
        _require_steps(config, subject.model)
    _count(results, config, faces, subject)
    note = results.leave_out
    if networks.judge is None:
        for section in ("composition", "sweep"):
            note(section, "there is no judge of attributes")
    if subject.model is None:
        for section in ("memorization_by_loss", "sweep"):
            note(section, ELSEWHERE)
        for row in (report.RECONSTRUCTED, report.UNTRAINED):
            note(f"distribution: {row}", ELSEWHERE)
    if not subject.captions:
        for section in ("clip_score", "attribute_consistency"):
            note(section, "the pictures' captions are not known: give them with --captions")
        return
    for name, clip in networks.clips.items():
        longest = _too_long([caption.text for caption in subject.captions], clip)
        if longest:
            note(f"clip_score: {name}", f"longer than it takes, shorten it: {longest!r}")


def _require_steps(config: Config, model: TextToFace) -> None:
    for setting in sweep_settings(config.sampling, config.evaluation):
        try:
            set_timesteps(build_sampler(setting.sampler, model.objective), setting.steps)
        except ValueError as error:
            raise ValueError(f"evaluation.sweep_steps: {error}") from error


def _count(
    results: Results, config: Config, faces: Mapping[str, FaceImages], subject: Subject
) -> None:
    trained, heldout, test = (len(faces[name]) for name in ("train", "val", "test"))
    paired = min(subject.count, test)
    for section, least, n in (
        ("distribution", report.LEAST, paired),
        ("clip_score", alignment.LEAST, paired),
        ("attribute_consistency", attribute_rates.LEAST, paired),
        ("composition", composition.LEAST, paired),
        ("copying", memorization.LEAST, paired),
        ("memorization_by_loss", loss_gap.LEAST, min(test, trained)),
        ("sweep", LEAST_SWEPT, min(config.evaluation.sweep_count, subject.count)),
    ):
        try:
            require_enough(n, least, section)
        except TooFewSamples as error:
            results.leave_out(section, str(error))
    if heldout < report.LEAST:
        for row in (report.FLOOR, report.RECONSTRUCTED):
            results.leave_out(f"distribution: {row}", f"the data has {heldout} val faces")


def _too_long(captions: list[str], clip: Clip) -> str:
    """The longest caption where a CLIP does not take it, else an empty text."""
    lengths = [len(tokens) for tokens in clip.tokenizer(captions).input_ids]
    longest = max(range(len(captions)), key=lengths.__getitem__)
    limit = clip.model.config.text_config.max_position_embeddings
    return captions[longest] if lengths[longest] > limit else ""
