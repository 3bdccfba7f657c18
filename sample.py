"""Make pictures: `python sample.py "A young woman with blond hair, smiling" --count 4 --seed 0`.

Takes the newest checkpoint of the preset's run. Each picture is a PNG named after its seed.
"""

import re
from dataclasses import replace
from pathlib import Path

from torchvision.utils import save_image

from command_line import command, config_from, parser
from inference.text_to_face import TextToFace
from models.device import choose_device


@command
def main() -> None:
    """Sample the prompt named on the command line."""
    options = parser(__doc__)
    options.add_argument("prompt", help="write it like the training captions")
    options.add_argument("--count", type=int, default=4, help="pictures, one a seed")
    options.add_argument("--seed", type=int, default=0, help="of the first picture")
    options.add_argument("--out", type=Path, help="default: outputs/<preset>/samples")
    arguments = options.parse_args()
    if arguments.count < 1 or arguments.seed < 0:
        raise ValueError("--count must be 1 or more, --seed 0 or more")
    config = config_from(arguments)
    out = arguments.out or config.output_folder / "samples"
    model = TextToFace.from_run(config.run_folder, choose_device())
    model.config = replace(model.config, sampling=config.sampling)
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    pictures = model.generate([arguments.prompt] * arguments.count, seeds)
    out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "_", arguments.prompt.lower()).strip("_")[:60]
    for seed, picture in zip(seeds, pictures, strict=True):
        save_image(picture, out / f"{name}_seed_{seed}.png")
    save_image(pictures, out / f"{name}.png", nrow=8, padding=4, pad_value=1.0)
    print(f"{len(pictures)} pictures and a grid in {out}")


if __name__ == "__main__":
    main()
