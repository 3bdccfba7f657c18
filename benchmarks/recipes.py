"""The race of recipes: legs of equal time or equal images, each a preset with changed settings.

`python -m benchmarks.recipes --preset demo --minutes 7 --leg weight --set
diffusion.timestep_sampling=weight` trains from nothing for about so many minutes, or with
`--images 200000` for so many images, and measures the pictures: distance to unseen faces, recall,
and where the preset's judge is there (notebook train2) attribute consistency. A leg is better if
its distance is lower and its recall no lower: a distance alone rewards lost variety, and recipes
weight the loss differently. The same command resumes.
Without `--leg` it prints the table of the preset's legs, from `outputs/recipes/<preset>/`.
"""

import json
from collections.abc import Sequence
from typing import Any

from command_line import command, parser, whole
from config import ROOT, get_config

GENERATED, REAL = "generated", "real"  # `evaluation.table`'s, which costs an import of pandas


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
    if arguments.leg:
        # torch takes seconds to import: a wrong word is answered before that.
        from benchmarks.recipe_leg import run_leg

        run_leg(arguments, folder / f"{arguments.leg}.json")
    legs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    print("\n".join(table_lines(legs)))


def table_lines(legs: Sequence[dict[str, Any]]) -> list[str]:
    """The finished legs as a table in Markdown, nearest to real faces first."""
    done = [leg for leg in legs if "numbers" in leg]
    if not done:
        return ["no leg was run: name one with --leg"]
    heads = ["leg", "changes", "seed", "minutes", "images/s", "images", "pictures"]
    for name in ("distance", "recall", "consistency"):
        heads += [name, "of real faces"]
    done.sort(key=lambda leg: leg["numbers"][0]["value"])
    rows = [heads, ["---"] * len(heads), *map(cells, done)]
    return [f"| {' | '.join(map(str, row))} |" for row in rows]


def cells(leg: dict[str, Any]) -> list[object]:
    """A leg's line: what it was, and each number with its interval beside that of real faces."""
    first = leg["numbers"][0]
    numbers = {
        (row["question"], row["set"]): f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
        for row in leg["numbers"]
    }
    questions = (first["question"], "recall", "balanced_accuracy")
    changes = ", ".join(f"`{change}`" for change in leg["changes"]) or "–"
    pace = [leg[name] for name in ("seed", "minutes", "images_per_second", "images")]
    pictures = f"{first['n']} of {leg['pixels']} px, {first['space']}"
    found = [numbers.get((name, of), "–") for name in questions for of in (GENERATED, REAL)]
    return [leg["leg"], changes, *pace, pictures, *found]


if __name__ == "__main__":
    main()
