"""Sets of pictures as PNG files: resumable, and shared among processes.

Files are written whole, so an interrupted set resumes. Whatever decides a picture is in the name of
its file or folder. A set is read from its files on access: memory does not grow with it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from config import SamplingConfig
from files import replacing
from inference.text_to_face import TextToFace, paired

Make = Callable[[Sequence[int]], Tensor]  # slots -> pictures (B, 3, H, W) in [0, 1] on the CPU
BATCH = 32  # pictures that are made together
PERTURBED = ("perturbed_attention_scale", "perturbed_attention_below")  # of SamplingConfig
# Raise it when a change of the code makes other pictures of the same request, so that fixed code is
# not measured by its old pictures.
CODE_VERSION = 3


@dataclass(frozen=True)
class Request:
    """Pictures to be made: one for each prompt with its seed, in one way."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: SamplingConfig

    def protocol(self, model: TextToFace) -> dict[str, object]:
        """How a model makes the pictures; stored with every number computed from them."""
        decoder = {"decoder": model.decoder_key} if model.config.models.decoder else {}
        return {
            "model": model.identity,
            **decoder,
            "weights": "EMA",
            **way_of(self.sampling),
            "n": len(self.prompts),
            "seeds": f"{self.seeds[0]} to {self.seeds[-1]}, one a picture",
            "precision": "float32" if model.precision == "no" else model.precision,
            "computed_on": model.device.type,
            "code_version": CODE_VERSION,
            "format": "PNG, uint8 RGB",
        }

    def key(self, model: TextToFace) -> str:
        """Hash of everything that decides the pictures."""
        return key_of(self.protocol(model), self.prompts, self.seeds)


def way_of(how: SamplingConfig) -> dict[str, object]:
    """The settings that decide a picture, as far as they are in use."""
    unused = {"prompts", *(() if how.perturbed_attention_scale else PERTURBED)}
    used = {name: value for name, value in vars(how).items() if name not in unused}
    return {name: value for name, value in used.items() if value is not None}


def key_of(*facts: object) -> str:
    """Twelve hex digits of facts that JSON can hold, to name what they decide."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class PictureFiles(Sequence[Tensor]):
    """A set of PNG files as uint8 (3, H, W) each, read on access.

    `key` decides what the pictures are, as in the name of their folder.
    """

    def __init__(self, paths: Sequence[Path], key: str) -> None:
        self.paths, self.key = tuple(paths), key

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, slot: int) -> Tensor:
        return decode_image(str(self.paths[slot]), ImageReadMode.RGB)


def generate_set(model: TextToFace, request: Request, folder: Path) -> PictureFiles:
    """Make what is missing of the requested pictures and open all.

    Under `accelerate launch` each process makes its share; all return the whole set.

    Raises:
        ValueError: see `TextToFace.generate`; before the first picture is made.
    """
    how = request.sampling
    model.require_fit(request.prompts, how)

    def make(slots: Sequence[int]) -> Tensor:
        prompts = [request.prompts[slot] for slot in slots]
        seeds = [request.seeds[slot] for slot in slots]
        return model.generate(prompts, seeds, how=how)

    return make_set(make, len(request.prompts), folder, request.key(model))


def make_set(make: Make, count: int, folder: Path, key: str) -> PictureFiles:
    """Make what is missing of a set of pictures, in the folder `key` within `folder`, and open all.

    Args:
        key: names everything that decides the pictures.
    """
    paths = [folder / key / f"{slot:06d}.png" for slot in range(count)]
    make_missing(make, paths)
    return PictureFiles(paths, key)


def make_missing(
    make: Make, paths: Sequence[Path], facts: Sequence[Mapping[str, object]] = ()
) -> None:
    """Make the pictures whose files are not there.

    Batches are dealt out to the processes whole, so that any number of them makes the same bytes.

    Args:
        facts: what the file of each slot tells of its picture; empty: nothing.
    """
    processes = PartialState()
    missing = {slot for slot, path in enumerate(paths) if not path.is_file()}
    processes.wait_for_everyone()  # all must list the same before any makes one
    starts = sorted({slot - slot % BATCH for slot in missing})
    own = starts[processes.process_index :: processes.num_processes]
    has_no_bar = len(own) < 2 or not processes.is_main_process
    for start in tqdm(own, "sampling", unit="batch", mininterval=2, disable=has_no_bar):
        # The whole batch, of which some may be there: in another a picture differs by rounding.
        batch = range(start, min(start + BATCH, len(paths)))
        for slot, picture in zip(batch, make(batch), strict=True):
            if slot in missing:
                save_picture(picture, paths[slot], facts[slot] if facts else {})
    processes.wait_for_everyone()


def sample_files(
    model: TextToFace,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    negative_prompt: str = "",
) -> list[Path]:
    """One PNG for each prompt with its seed; those that are there already stay.

    Whatever decides a picture is in its name and, in full, in its text `parameters`.

    Raises:
        ValueError: see `TextToFace.generate`; before the first picture is made.
    """
    how = model.settings()
    prompts, seeds = paired(prompts, seeds)
    model.require_fit([*prompts, negative_prompt], how)
    facts = [
        facts_of(model, prompt, seed, how, negative_prompt)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    paths = [
        folder / f"{words_of(made['prompt'])}_seed_{made['seed']}_{key_of(CODE_VERSION, made)}.png"
        for made in facts
    ]

    def make(slots: Sequence[int]) -> Tensor:
        some = [prompts[slot] for slot in slots], [seeds[slot] for slot in slots]
        return model.generate(*some, negative_prompt=negative_prompt)

    make_missing(make, paths, facts)
    return paths


def facts_of(
    model: TextToFace, prompt: str, seed: int, how: SamplingConfig, negative_prompt: str = ""
) -> dict[str, object]:
    """All that decides a picture, as its file tells."""
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        **way_of(how),
        "preset": model.config.name,
        "weights": model.identity,
        "decoder": f"{model.config.models.decoder} {model.decoder_key}",
        "precision": model.precision,
        "device": model.device.type,
    }


def words_of(prompt: str) -> str:
    """The first words of a prompt for a file's name, which a hash makes unique.

    >>> words_of("A man, smiling")
    'a_man_smiling'
    """
    return re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60] or "picture"


def save_picture(picture: Tensor, path: Path, facts: Mapping[str, object]) -> None:
    """Write a picture (3, H, W) in [0, 1] as PNG, with what made it as the text `parameters`."""
    text = PngInfo()
    if facts:
        text.add_text("parameters", json.dumps(facts))
    pixels = picture.mul(255).add(0.5).clamp(0, 255).byte()
    with replacing(path) as temporary:
        to_pil_image(pixels).save(temporary, format="png", pnginfo=text)
