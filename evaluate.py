"""Judge a run: `python evaluate.py --preset demo`, or on all GPUs `accelerate launch evaluate.py`.

Answers the questions of `evaluation/questions.py` and writes them at the end, as a whole, into
`outputs/<preset>/evaluations/<what was measured>`; the newest numbers also into
`outputs/<preset>/metrics.json`. Pictures and features are kept: the same command resumes.
"""

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from command_line import command, config_from, parser
from evaluation import sweep
from evaluation.comparison import compare
from evaluation.opening import open_evaluation
from evaluation.questions import LEADING, QUESTIONS, finish
from evaluation.table import as_text
from inference.text_to_face import HOW_PICTURES_ARE_MADE
from models.device import choose_device

# The others wait for the main process while it computes numbers, longer than the usual limit.
PATIENCE = timedelta(hours=12)
EVALUATED = (  # what can change without another training; the checkpoint decides the rest
    *(*HOW_PICTURES_ARE_MADE, "evaluation.", "name=", "data.folder", "data.source"),
    *("data.drawn_counts", "data.loader_workers"),
)


@command
def main() -> None:
    """Judge what the command line names."""
    options = parser(__doc__)
    options.add_argument("--pictures", type=Path, help="judge the images of this folder instead")
    options.add_argument("--captions", type=Path, help="of --pictures: a CSV of file_name,text")
    options.add_argument("--sweep", action="store_true", help="guidance and steps alone")
    options.add_argument("--compare", nargs=2, metavar=("A", "B"), help="runs, or their folders")
    arguments = options.parse_args()
    if arguments.compare:
        print(as_text(compare(*arguments.compare)))
        return
    config, device = config_from(arguments), choose_device()
    refuse_changes_of_training(arguments.changes)
    processes = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    if not processes.is_main_process:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115, until the process ends
    evaluation = open_evaluation(config, device, arguments.pictures, arguments.captions)
    asked = {"sweep": sweep.answer} if arguments.sweep else QUESTIONS
    for question, answer in asked.items():
        print(f"\n{question}")
        print(as_text(evaluation.ask(answer)))
    if refused := sweep.refused(evaluation.table):
        print(f"\nrefused, as they cost recall: {'; '.join(refused)}")
    leading = [row for row in evaluation.table if row.question in LEADING]
    print(f"\nIn short\n{as_text(leading)}\n\n{finish(evaluation)}")


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
