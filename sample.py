"""Make pictures: `python sample.py "A young woman with blond hair, smiling" --preset laptop`.

Each picture is a PNG that tells how it was made. Whatever decides it is in its name, so the same
command resumes. A grid shows the first ones.
"""

import argparse
import sys

from command_line import add_checkpoint, command, config_from, parser, path, whole

MAX_SEED = 2**32 - 1  # `diffusion.sampling.MAX_SEED`, which costs an import of torch
IN_GRID, COLUMNS, PIXELS_PER_INCH = 64, 8, 100


@command
def main() -> None:
    """Sample the prompts named on the command line."""
    arguments = read_arguments()
    config, prompts = config_from(arguments), read_prompts(arguments)
    out = arguments.out or config.output_folder / "samples"
    out.mkdir(parents=True, exist_ok=True)
    # torch takes seconds to import: a wrong word is answered before that.
    from files import replacing
    from inference.opening import find_run
    from inference.picture_sets import PictureFiles, key_of, sample_files
    from inference.text_to_face import TextToFace
    from plotting import show_images

    run = find_run(config)
    model = TextToFace.from_run(run, changes=arguments.changes, checkpoint=arguments.checkpoint)
    if unknown := model.unknown_words(*prompts, arguments.negative_prompt):
        print(f"no caption of CelebA's attributes has: {', '.join(unknown)}", file=sys.stderr)
    seeds = range(arguments.seed, arguments.seed + len(prompts))
    paths = sample_files(model, prompts, seeds, out, arguments.negative_prompt)
    pictures = list(PictureFiles(paths[:IN_GRID], ""))
    is_one = len({*prompts}) == 1
    titles, title = ([], prompts[0]) if is_one else (prompts[:IN_GRID], "")
    inches = pictures[0].shape[-1] / PIXELS_PER_INCH
    figure = show_images(pictures, titles, min(COLUMNS, len(pictures)), title, inches)
    grid = out / f"grid_{key_of([each.name for each in paths])}.png"
    with replacing(grid) as temporary:
        figure.savefig(temporary, format="png", dpi=PIXELS_PER_INCH)
    print(f"{len(paths)} pictures in {out}, the first of them in {grid.name}")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("prompt", nargs="?", help="in quotes; write it like the training captions")
    options.add_argument("--prompts", type=path, metavar="FILE", help="a text file, one a line")
    options.add_argument("--negative-prompt", default="", help="takes the empty caption's place")
    options.add_argument("--count", type=whole(1, 10**6), default=4, help="pictures of each prompt")
    seed = whole(0, MAX_SEED)
    options.add_argument("--seed", type=seed, default=0, help="of the first picture; then + 1 each")
    options.add_argument("--out", type=path, help="folder; default: outputs/<preset>/samples")
    add_checkpoint(options)
    arguments = options.parse_args()
    if (arguments.prompt is None) == (arguments.prompts is None):
        options.error("give a prompt, or --prompts FILE")
    return arguments


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """One prompt a picture.

    Raises:
        ValueError: the file of prompts is not there, empty, or not in UTF-8.
    """
    prompts = [arguments.prompt]
    if arguments.prompts:
        try:
            # Windows' Notepad puts a mark in front, which would belong to the first prompt.
            lines = arguments.prompts.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            raise ValueError(f"--prompts {arguments.prompts}: {error}") from error
        prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {arguments.prompts}: no prompt in it")
    return [prompt for prompt in prompts for _ in range(arguments.count)]


if __name__ == "__main__":
    main()
