"""Draw latents with a trained run, for `python -m pretraining decoder --sampled`.

`python -m pretraining.latents --preset laptop --count 3000 --out data/laptop_latents.npy` draws
them for captions of training faces, with the run's sampler and guidance unless `--set` changes
them. A decoder that has seen them repairs what this diffusion model leaves unfinished.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from command_line import command, config_from, parser, whole
from custom_datasets.opening import open_faces
from inference.text_to_face import TextToFace
from inference.text_to_latents import TextToLatents
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
    if arguments.out.suffix != ".npy":
        options.error(f"--out {arguments.out}: name a file that ends in .npy")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    config = config_from(arguments)
    faces = open_faces(config, "train")
    shown = choose(len(faces), arguments.count).tolist()
    captions = [faces.caption(row).text for row in shown]
    latents = draw(TextToFace.from_run(config.run_folder, None, arguments.changes), captions)
    np.save(arguments.out, latents)
    print(f"{arguments.out}: {latents.shape}")


def draw(model: TextToLatents, captions: list[str]) -> np.ndarray:
    """Latents of captions with the run's own settings, float16 (N, C, h, w); a caption's seed is
    its position.
    """
    parts = [range(len(captions))[i : i + BATCH] for i in range(0, len(captions), BATCH)]
    with freed_memory_kept(model.device):
        drawn = [
            model.last_latents([captions[row] for row in seeds], seeds, model.config.sampling)
            for seeds in tqdm(parts, desc="latents")
        ]
    return torch.cat(drawn).half().cpu().numpy()


if __name__ == "__main__":
    main()
