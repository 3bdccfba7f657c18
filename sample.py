"""Make pictures: `python sample.py "A young woman with blond hair, smiling" --count 4 --seed 0`.

Takes the newest checkpoint of the preset's run. Each picture is a PNG named after its prompt and
seed, beside a grid of the first ones.
"""

import argparse
import hashlib
import os
import re
from pathlib import Path

from command_line import command, config_from, parser, stop_at_once, whole

TOGETHER, IN_GRID = 32, 64  # pictures made at a time, and shown in the grid


@command
def main() -> None:
    """Sample the prompt named on the command line."""
    arguments = read_arguments()
    config = config_from(arguments)
    out = arguments.out or config.output_folder / "samples"
    make_folder(out)
    with stop_at_once():  # torch takes seconds to import; a wrong word is answered before that
        from torchvision.utils import save_image

        from files import replacing
        from inference.text_to_face import TextToFace
        from models.device import choose_device

        model = TextToFace.from_run(config.run_folder, choose_device(), arguments.changes)
    name, grid = file_name(arguments.prompt), []
    for begin in range(0, arguments.count, TOGETHER):
        end = min(begin + TOGETHER, arguments.count)
        seeds = range(arguments.seed + begin, arguments.seed + end)
        for seed, picture in zip(seeds, model.generate(arguments.prompt, seeds), strict=True):
            grid += [picture] if len(grid) < IN_GRID else []
            with replacing(out / f"{name}_seed_{seed}.png") as path:
                save_image(picture, path, format="png")
    with replacing(out / f"{name}.png") as path:
        save_image(grid, path, format="png", nrow=8, padding=4, pad_value=1.0)
    print(f"{arguments.count} pictures and a grid in {out}")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("prompt", help="in quotes; write it like the training captions")
    options.add_argument("--count", type=whole(1, 10**6), default=4, help="pictures, one a seed")
    options.add_argument("--seed", type=whole(0, 2**63), default=0, help="of the first picture")
    options.add_argument("--out", type=Path, help="folder; default: outputs/<preset>/samples")
    return options.parse_args()


def make_folder(out: Path) -> None:
    """Make the folder for the pictures before the work.

    Raises:
        OSError: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in its place" if is_file else error.strerror
        raise OSError(f"--out {out}: {reason}; name another folder") from error
    if not os.access(out, os.W_OK):
        raise PermissionError(f"--out {out}: no permission to write there; name another folder")


def file_name(prompt: str) -> str:
    """The words of a prompt as a file's name; a hash stands for what they do not tell.

    >>> file_name("A man, smiling")
    'a_man_smiling'
    """
    words = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")
    if words and len(words) <= 60 and prompt.isascii():
        return words
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{words[:50]}_{digest[:8]}".strip("_")


if __name__ == "__main__":
    main()
