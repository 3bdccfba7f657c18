"""Makes the sets of pictures that an evaluation looks at: resumable, and shared among processes.

Every picture is a PNG named after its place. Intact files are kept, so an interrupted generation
resumes. The folder is named after everything that decides
the pictures. A set is read from its files on access: memory does not grow with it.
"""

import ast
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import diffusers
from accelerate import PartialState
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.utils import save_image
from tqdm import tqdm

from config import SamplingConfig
from diffusion import objective, sampling
from files import replacing
from inference import opening, text_to_face, text_to_latents
from inference.text_to_face import TextToFace
from models import custom_unet_celeba_ldm, graphs, text_encoder, vae_wrapper

BATCH = 32  # pictures that are made together


@dataclass(frozen=True)
class Request:
    """Pictures to be made: one for each prompt with its seed, by one model in one way."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: SamplingConfig
    model: str  # what the weights are: `checkpoints.identity`
    device: str  # kind of device that computes: "cuda", "cpu"
    precision: str  # that it computes in: "bf16", "fp16" or "no" (float32)
    decoder: str | None = None  # fingerprint of a decoder that is not the autoencoder's own

    def protocol(self) -> dict[str, object]:
        """How the pictures are made; stored with every number computed from them."""
        decoder = {"decoder": self.decoder} if self.decoder else {}
        epoch = self.sampling.guide_epoch
        guide = {"guided_by": f"the same run after epoch {epoch}"} if epoch else {}
        return {
            "model": self.model,
            **decoder,
            **guide,
            "weights": "EMA",
            "sampler": self.sampling.sampler,
            "steps": self.sampling.steps,
            "guidance_scale": self.sampling.guidance_scale,
            "guidance_interval": self.sampling.guidance_interval,
            "n": len(self.prompts),
            "seeds": f"{self.seeds[0]} to {self.seeds[-1]}, one a picture",
            "precision": "float32" if self.precision == "no" else self.precision,
            "computed_on": self.device,
            "sampler_code": sampler_code(),
            "format": "PNG, uint8 RGB",
        }

    def key(self) -> str:
        """Hash of everything that decides the pictures."""
        return key_of(self.protocol(), self.prompts, self.seeds)


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

    def __getitem__(self, place: int) -> Tensor:
        return decode_image(str(self.paths[place]), ImageReadMode.RGB)


def generate_set(
    model: TextToFace, request: Request, folder: Path, batch_size: int = BATCH
) -> PictureFiles:
    """Make what is missing of the requested pictures and open all.

    Under `accelerate launch` each process makes its share; all return the whole set.

    Raises:
        ValueError: the numbers of prompts and seeds differ, or another model guides than requested.
    """
    if len(request.prompts) != len(request.seeds):
        raise ValueError(f"{len(request.prompts)} prompts for {len(request.seeds)} seeds")
    how, guide_epoch = request.sampling, model.config.sampling.guide_epoch
    if how.guide_epoch != guide_epoch:
        raise ValueError(
            f"sampling.guide_epoch is {how.guide_epoch} in the request and {guide_epoch} in the "
            "model: set both alike, since the request names the pictures and the model makes them"
        )

    def make(chosen: Sequence[int]) -> Tensor:
        return model.generate(
            [request.prompts[i] for i in chosen],
            [request.seeds[i] for i in chosen],
            how.guidance_scale,
            how.steps,
            how.sampler,
            guidance_interval=how.guidance_interval,
            batch_size=batch_size,
        )

    return make_set(make, len(request.prompts), folder, request.key(), batch_size)


def make_set(
    make: Callable[[Sequence[int]], Tensor],
    count: int,
    folder: Path,
    key: str,
    batch_size: int = BATCH,
) -> PictureFiles:
    """Make what is missing of a set of pictures and open all of it.

    Batches are dealt out to the processes whole, so that any number of them makes the same bytes.

    Args:
        make: places in the set -> pictures (B, 3, H, W) in [0, 1] on the CPU.
        folder: holds the set in a folder of its own, named `key`.
        key: names everything that decides the pictures.
    """
    paths = [folder / key / f"{number:06d}.png" for number in range(count)]
    processes = PartialState()
    if processes.is_main_process:
        _remove_torn(paths)
    processes.wait_for_everyone()
    missing = {number for number, path in enumerate(paths) if not path.is_file()}
    processes.wait_for_everyone()  # all must list the same before any makes one
    starts = sorted({number - number % batch_size for number in missing})
    own = starts[processes.process_index :: processes.num_processes]
    has_no_bar = not own or not processes.is_main_process
    bar = {"desc": "making pictures", "unit": "batch", "mininterval": 10}
    for start in tqdm(own, **bar, disable=has_no_bar):
        # The whole batch, of which some may be there: in another a picture differs by rounding.
        batch = range(start, min(start + batch_size, count))
        for number, picture in zip(batch, make(batch), strict=True):
            if number in missing:
                with replacing(paths[number]) as temporary:
                    save_image(picture, temporary, format="png")
    processes.wait_for_everyone()
    return PictureFiles(paths, key)


def _remove_torn(paths: Sequence[Path]) -> None:
    """Delete pictures that a full disk or a power cut left incomplete, so that they are remade."""
    torn = [path for path in paths if path.is_file() and not _is_whole(path)]
    for path in torn:
        path.unlink()
    if torn:
        print(f"{len(torn)} pictures are damaged and are made again, such as {torn[0]}")


def _is_whole(path: Path) -> bool:
    """Whether every chunk of a PNG is there and has its CRC; decodes no pixel."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError):  # PIL's for a chunk that is wrong
        return False
    return True


@functools.cache
def sampler_code() -> str:
    """Twelve hex digits of the code that turns words into a picture.

    Comments, docstrings and layout do not count. After any other change the pictures are made
    again, so that fixed code is not measured by its old pictures.
    """
    modules = (objective, sampling, opening, text_to_latents, text_to_face)
    modules += (text_encoder, custom_unet_celeba_ldm, graphs, vae_wrapper)
    parts = [diffusers.__version__, *map(_statements, modules)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _statements(module: ModuleType) -> str:
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
