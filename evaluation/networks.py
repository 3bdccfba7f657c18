"""Opens the networks that judge, each tried on a probe; one that fails is noted and left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError

from config import ROOT, Config
from evaluation.copying_spaces import copying_spaces
from evaluation.features import (
    Clip,
    FeatureNetwork,
    clip_image_features,
    judge_features,
    open_clip,
    open_network,
)
from evaluation.judge import Reading, reliable_attributes
from evaluation.results import Results
from models.attribute_classifier import AttributeClassifier
from models.loading import UNREADABLE

# Absent, not installed, or a file that is not what its name says: a page in HTML, a part of itself.
NOT_USABLE = (FileNotFoundError, ImportError, SafetensorError, *UNREADABLE)
JUDGE = "judge"


@dataclass
class Networks:
    """The available networks: feature spaces, CLIPs that score, the attribute classifier."""

    spaces: dict[str, FeatureNetwork] = field(default_factory=dict)  # by the settings' names
    clips: dict[str, Clip] = field(default_factory=dict)
    judge: AttributeClassifier | None = None
    judge_facts: dict[str, object] = field(default_factory=dict)

    def reliable(self, least: float) -> tuple[str, ...]:
        """The attributes that the judge reads well on validation faces."""
        readings = [Reading(**reading) for reading in self.judge_facts["validation"]]
        return reliable_attributes(readings, least)

    def answers(self) -> FeatureNetwork:
        """The judge's probabilities of the 40 attributes, (N, 40), as a network."""
        size = self.judge.config.image_size
        return FeatureNetwork("attributes", size, lambda images: self.judge(images).sigmoid())

    def for_copying(self) -> dict[str, FeatureNetwork]:
        """The two spaces in which a copy shows best, by the settings' names."""
        chosen = copying_spaces(list(self.spaces.values()))
        return {name: network for name, network in self.spaces.items() if network in chosen}

    def for_sweep(self) -> FeatureNetwork:
        """The first space that is not the judge's, which tells what is shown there already."""
        names = [name for name in self.spaces if name != JUDGE] or [JUDGE]
        return self.spaces[names[0]]


def open_networks(config: Config, results: Results, device: torch.device) -> Networks:
    """Open everything that the preset names; what fails is left out of the results by name."""
    found, plan = Networks(), config.evaluation
    named = plan.inception_weights
    weights = str(ROOT / Path(named).expanduser()) if named else None
    with _noted(results, "attribute_consistency", f"distribution: {JUDGE}"):
        judge, found.judge_facts = AttributeClassifier.load(config.judge_path)
        if "validation" not in found.judge_facts:
            raise FileNotFoundError(
                f"{config.judge_path} does not tell what the judge reads well on validation faces: "
                "run the notebook train2 again"
            )
        found.judge = judge.to(device)
    for name in plan.clip_judges:
        with _noted(results, f"clip_score: {name}"):
            found.clips[name] = open_clip(name)
    for name in plan.feature_networks:
        with _noted(results, f"distribution: {name}"):
            if name != JUDGE or found.judge:
                found.spaces[name] = _tried(_open_space(name, found, weights), device)
    if not found.spaces:
        reason = "none of the feature networks could be opened"
        if not plan.feature_networks:
            reason = "evaluation.feature_networks names none"
        for section in ("distribution", "copying", "sweep"):
            results.leave_out(section, reason)
    if not found.clips:
        results.leave_out("clip_score", "no CLIP that scores is named, or none could be opened")
    return found


def _open_space(name: str, found: Networks, inception_weights: str | None) -> FeatureNetwork:
    kind, _, model = name.partition(":")
    if kind == "clip" and model in found.clips:  # a large CLIP is in memory once
        return clip_image_features(found.clips[model])
    own = judge_features(found.judge) if name == JUDGE else None
    try:
        return open_network(name, own, inception_weights)
    except NOT_USABLE as error:
        is_there = Path(inception_weights or "").is_file()
        is_absent = isinstance(error, FileNotFoundError) and not is_there
        if kind != "inception" or is_absent or isinstance(error, ImportError):
            raise
        where = inception_weights or "the file that was downloaded"
        raise ValueError(
            f"{where} does not hold FID's Inception weights, or not all of them: fetch "
            f"weights-inception-2015-12-05-6726825d.pth again ({_reason(error)})"
        ) from error


def _tried(network: FeatureNetwork, device: torch.device) -> FeatureNetwork:
    probe = torch.randint(256, (2, 3, network.size, network.size), dtype=torch.uint8)
    with torch.inference_mode():
        network.extract(probe.to(device))
    return network


@contextmanager
def _noted(results: Results, *titles: str) -> Iterator[None]:
    """Leave out what cannot be opened within the block."""
    try:
        yield
    except NOT_USABLE as error:
        for title in titles:
            results.leave_out(title, _reason(error))


def _reason(error: BaseException) -> str:
    """The first line of an error; of one that other libraries raise, its kind as well."""
    line = next(iter(str(error).splitlines()), "")
    says_what = isinstance(error, FileNotFoundError | ImportError | ValueError)
    return line if says_what and line else f"{type(error).__name__}: {line}"
