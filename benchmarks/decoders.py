"""How near do decoders of the same latents come to real faces, at the size of the latents' images
and at twice that size?

`python -m benchmarks.decoders --preset laptop madebyollin/taesd data/taesd_faces_256` encodes
validation faces, decodes them with each of the autoencoders, and prints the Frechet distances to
test faces in EfficientNet-Lite0's features, beside that of the validation faces themselves.
Pictures of another size are resized.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_dtype

from command_line import command, config_from, parser
from config import Config
from custom_datasets.celeba_hq_dataset import Images
from custom_datasets.opening import open_faces
from evaluation.distance import Frechet
from evaluation.features import extract
from evaluation.networks import FeatureNetwork, efficientnet_lite0_features
from models.decoder import open_beside
from models.device import choose_device
from models.vae_wrapper import VAEWrapper
from pretraining.faces import choose
from pretraining.sharpness import BATCH, enlarge, reconstructed

DRAWN, REFERENCE = 400, 1000  # faces at most


@command
def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument(
        "decoders", nargs="+", help="an autoencoder, then decoders of the same latents"
    )
    arguments = options.parse_args()
    config, device = config_from(arguments), choose_device()
    first, *others = arguments.decoders
    opened = {first: VAEWrapper.from_pretrained(first)}
    opened |= {name: open_beside(name, opened[first]) for name in others}
    opened = {name: vae.to(device) for name, vae in opened.items()}
    for line in table_lines(config, opened, efficientnet_lite0_features(device), device):
        print(line, flush=True)


def table_lines(
    config: Config,
    decoders: dict[str, VAEWrapper],
    network: FeatureNetwork,
    device: torch.device,
) -> Iterator[str]:
    """The lines of a table in Markdown: real faces, then each decoder.

    Raises:
        ValueError: a decoder has another encoder than the first, so its latents mean another thing.
    """
    sizes = (config.data.image_size, 2 * config.data.image_size)
    held_out, test = (
        [open_faces(config, split, size).images() for size in sizes] for split in ("val", "test")
    )
    shown, others = choose(len(held_out[0]), DRAWN), choose(len(test[0]), REFERENCE, seed=1)
    references = [Frechet(extract(network, faces[others], device)) for faces in test]

    def row(name: str, pictures: Sequence[Tensor]) -> str:
        features = [extract(network, images, device) for images in pictures]
        pairs = zip(references, features, strict=True)
        distances = [reference(found) for reference, found in pairs]
        return f"| {name} | {' | '.join(f'{distance:.1f}' for distance in distances)} |"

    yield f"{network.name}, {len(shown)} faces against {len(others)}"
    yield f"| decoder | {' | '.join(f'{size} px' for size in sizes)} |"
    yield "|---|---|---|"
    yield row("real faces", [faces[shown] for faces in held_out])
    first = next(iter(decoders.values()))
    for name, vae in decoders.items():
        if vae.meaning != first.meaning:
            raise ValueError(f"{name} has another encoder than {next(iter(decoders))}")
        drawn = reconstructions(vae, held_out[0], shown, device)
        yield row(name, [to_dtype(enlarge(drawn, size), torch.uint8, scale=True) for size in sizes])


def reconstructions(
    vae: VAEWrapper, images: Images, positions: np.ndarray, device: torch.device
) -> Tensor:
    """Chosen faces through an autoencoder: float (N, 3, H, H) in [0, 1]."""
    batches = np.split(positions, range(BATCH, len(positions), BATCH))
    return torch.cat([reconstructed(vae, images[rows].to(device)).cpu() for rows in batches])


if __name__ == "__main__":
    main()
