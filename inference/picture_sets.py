"""Makes the set of pictures that an evaluation looks at: resumable, and shared among processes.

Every picture is a PNG named after its place; what is there is not made again, so an interrupted
generation goes on where it stopped. The folder is named after everything that decides the pictures.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torchvision.io import ImageReadMode, decode_image
from torchvision.utils import save_image
from tqdm import tqdm

from config import SamplingConfig
from inference.text_to_face import TextToFace


@dataclass(frozen=True)
class Request:
    """Pictures to be made: one for each prompt with its seed, by one model in one way."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: SamplingConfig
    model: str  # what the weights are: `checkpoints.identity`

    def protocol(self) -> dict[str, object]:
        """How the pictures are made, to stand beside every number drawn from them."""
        return {
            "model": self.model,
            "weights": "EMA",
            "sampler": self.sampling.sampler,
            "steps": self.sampling.steps,
            "guidance_scale": self.sampling.guidance_scale,
            "guidance_interval": self.sampling.guidance_interval,
            "n": len(self.prompts),
            "seeds": f"{self.seeds[0]} to {self.seeds[-1]}, one a picture",
            "format": "PNG, uint8 RGB",
        }

    def key(self) -> str:
        """Hash of everything that decides the pictures."""
        text = json.dumps([self.protocol(), self.prompts, self.seeds])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def generate_set(
    model: TextToFace, request: Request, folder: Path, batch_size: int = 32
) -> torch.Tensor:
    """Make what is missing of the requested pictures and return all, uint8 (N, 3, H, W).

    Under `accelerate launch` each process makes its share; all return the whole set.

    Raises:
        ValueError: the numbers of prompts and seeds differ.
    """
    if len(request.prompts) != len(request.seeds):
        raise ValueError(f"{len(request.prompts)} prompts for {len(request.seeds)} seeds")
    folder = folder / request.key()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06d}.png" for number in range(len(request.prompts))]
    processes = PartialState()
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    processes.wait_for_everyone()  # all must list the same before any makes one
    with processes.split_between_processes(missing) as own:
        _make(model, request, paths, own, batch_size)
    processes.wait_for_everyone()
    return torch.stack([decode_image(str(path), ImageReadMode.RGB) for path in paths])


def _make(
    model: TextToFace, request: Request, paths: Sequence[Path], own: Sequence[int], batch_size: int
) -> None:
    how = request.sampling
    with tqdm(total=len(own), desc="making pictures", mininterval=10, disable=len(own) < 1) as bar:
        for start in range(0, len(own), batch_size):
            chosen = own[start : start + batch_size]
            pictures = model.generate(
                [request.prompts[i] for i in chosen],
                [request.seeds[i] for i in chosen],
                how.guidance_scale,
                how.steps,
                how.sampler,
                guidance_interval=how.guidance_interval,
                batch_size=batch_size,
            )
            for number, picture in zip(chosen, pictures, strict=True):
                part = paths[number].with_suffix(".part")
                save_image(picture, part, format="png")
                part.replace(paths[number])  # a picture is there whole or not at all
            bar.update(len(chosen))
