"""Judge a run: `python evaluate.py --preset demo`, or on all GPUs `accelerate launch evaluate.py`.

Opens and counts everything before the first picture is made, measures what can be measured, writes
each section's numbers to `outputs/<preset>/metrics.json` as soon as they exist, and a page of them
to `report.html` beside it. Pictures and features are kept: the same command resumes.
"""

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from command_line import command, config_from, parser
from evaluation.comparison import difference_lines
from evaluation.conclusion import conclude, conclude_comparison
from evaluation.sections import SECTIONS
from evaluation.session import open_evaluation
from inference.text_to_face import HOW_PICTURES_ARE_MADE
from models.device import choose_device

# The others wait for the main process while it computes numbers, longer than the usual limit.
PATIENCE = timedelta(hours=12)
EVALUATED = (  # what can change without another training; the checkpoint decides the rest
    *(*HOW_PICTURES_ARE_MADE, "evaluation.", "classifier.least_balanced_accuracy", "name="),
    *("data.source", "data.drawn_counts", "data.loader_workers"),
)


@command
def main() -> None:
    """Judge what the command line names."""
    options = parser(__doc__)
    options.add_argument("--pictures", type=Path, help="judge the images of this folder instead")
    options.add_argument("--captions", type=Path, help="of --pictures: .csv, .jsonl, .json or .txt")
    options.add_argument("--out", type=Path, help="folder of the numbers of --pictures")
    options.add_argument("--compare", nargs=2, metavar=("A", "B"), help="runs, or their folders")
    arguments = options.parse_args()
    if arguments.compare:
        differences, page = conclude_comparison(*arguments.compare)
        print(*difference_lines(differences), page, sep="\n")
        return
    config, device = config_from(arguments), choose_device()
    refuse_changes_of_training(arguments.changes)
    processes = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    if not processes.is_main_process:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115, until the process ends
    given = (arguments.pictures, arguments.captions, arguments.out)
    evaluation = open_evaluation(config, device, *given)
    for question, answer in SECTIONS.items():
        print(f"\n{question}")
        for line in answer(evaluation):
            print(line)
    print("\nIn short")
    for line in conclude(evaluation):
        print(line)


def refuse_changes_of_training(changes: Sequence[str]) -> None:
    """Refuse settings that a trained model cannot take, and that would do nothing.

    Raises:
        ValueError: names the change.
    """
    for change in changes:
        if not change.strip().startswith(EVALUATED):
            raise ValueError(
                f"{change!r}: the checkpoint decides it, or no number depends on it; "
                f"what can change begins with one of {', '.join(EVALUATED)}"
            )


if __name__ == "__main__":
    main()
