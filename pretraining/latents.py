"""Sample latents with a trained run, for `python -m pretraining decoder --sampled`.

`python -m pretraining.latents --preset laptop --count 3000 --out data/laptop_latents.npy` samples
them for captions of training faces, with the run's own settings unless `--set` changes them. A
decoder that has seen them repairs what this diffusion model leaves unfinished.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from command_line import command, config_from, parser, whole
from custom_datasets.opening import open_faces
from inference.text_to_face import TextToFace
from models.device import freed_memory_kept
from pretraining.faces import choose

BATCH = 40


@command
def main() -> None:
    """Write the file."""
    options = parser(__doc__)
    options.add_argument("--count", type=whole(1, 10**6), default=3000)
    options.add_argument("--out", type=Path, required=True, help="a file, .npy")
    arguments = options.parse_args()
    config = config_from(arguments)
    faces = open_faces(config, "train")
    captions = [faces.caption(face).text for face in choose(len(faces), arguments.count).tolist()]
    model = TextToFace.from_run(config.run_folder, None, arguments.changes)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.save(arguments.out, sample_latents(model, captions))
    print(f"{len(captions)} latents in {arguments.out}")


def sample_latents(model: TextToFace, captions: list[str]) -> np.ndarray:
    """Latents of captions with the run's own settings, float16 (N, C, h, w); the seed of caption i
    is i.
    """
    batches = [range(len(captions))[i : i + BATCH] for i in range(0, len(captions), BATCH)]
    with freed_memory_kept(model.device):
        latents = [
            model.sample_latents([captions[i] for i in seeds], seeds, model.config.sampling)
            for seeds in tqdm(batches, desc="latents")
        ]
    return torch.cat(latents).half().cpu().numpy()


if __name__ == "__main__":
    main()
