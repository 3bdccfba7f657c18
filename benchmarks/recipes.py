"""The race of recipes: legs of equal time or equal images, each a preset with changed settings.

`python -m benchmarks.recipes --preset demo --minutes 7 --leg weight --set
diffusion.timestep_sampling=weight` trains from nothing for about so many minutes, or with
`--images 200000` for so many images, and measures the pictures: distance to unseen faces, recall,
and where the preset's judge is there (notebook train2) attribute consistency. A leg is better if
its distance is lower and its recall no lower: a distance alone rewards faces that are too much
alike, and recipes weight the loss differently. The same command resumes.
Without `--leg` it prints the table of the preset's legs, from `outputs/recipes/<preset>/`.
"""

import json

from command_line import command, parser, whole
from config import ROOT, get_config


@command
def main() -> None:
    """Run one leg, or none, and print the table."""
    options = parser(__doc__)
    options.add_argument("--leg", help="name of the leg; its run folder is <preset>-<leg>")
    length = options.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=whole(1, 10_000), default=15, help="default: 15")
    length.add_argument("--images", type=whole(1, 10**9), help="that training sees, in their place")
    arguments = options.parse_args()
    get_config(arguments.preset, arguments.changes)
    folder = ROOT / "outputs" / "recipes" / get_config(arguments.preset).name
    # torch takes seconds to import: a wrong word is answered before that.
    from benchmarks.recipe_leg import run_leg, table_lines

    if arguments.leg:
        run_leg(arguments, folder / f"{arguments.leg}.json")
    legs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    print("\n".join(table_lines(legs)))


if __name__ == "__main__":
    main()
