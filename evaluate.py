"""Judge a run: `python evaluate.py --preset demo`, or on all GPUs `accelerate launch evaluate.py`.

Answers the questions of `evaluation/questions.py` and writes them at the end, as a whole, into
`outputs/<preset>/evaluations/<what was measured>`; the newest whole table also into
`outputs/<preset>/metrics.json`. Pictures and features are kept: the same command resumes.
"""

import os
import sys
from collections.abc import Sequence

from command_line import add_checkpoint, command, config_from, parser, path

EVALUATED = (  # what can change without another training; the checkpoint decides the rest
    *("sampling.", "models.decoder", "data.picture_size", "evaluation.", "name="),
    *("data.source", "data.drawn_counts", "data.loader_workers"),
)


@command
def main() -> None:
    """Judge what the command line names."""
    options = parser(__doc__)
    options.add_argument("--pictures", type=path, help="judge the images of this folder instead")
    options.add_argument("--captions", type=path, help="of --pictures: a CSV of file_name,text")
    options.add_argument("--sweep", action="store_true", help="guidance and steps alone")
    options.add_argument("--compare", nargs=2, metavar=("A", "B"), help="runs, or their folders")
    add_checkpoint(options)
    arguments = options.parse_args()
    config = config_from(arguments)
    refuse_changes_of_training(arguments.changes)
    # torch takes seconds to import: a wrong word is answered before that.
    from accelerate import PartialState

    from evaluation import sweep
    from evaluation.comparison import compare
    from evaluation.opening import open_evaluation
    from evaluation.questions import LEADING, QUESTIONS, finish
    from evaluation.table import as_text
    from models.device import choose_device
    from training.processes import PATIENCE

    if arguments.compare:
        print(as_text(compare(*arguments.compare)))
        return
    device = choose_device()
    processes = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    if not processes.is_main_process:  # it computes the same, which the main one tells
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123, until the process ends
    given = (arguments.changes, arguments.pictures, arguments.captions, arguments.checkpoint)
    evaluation = open_evaluation(config, device, *given)
    asked = QUESTIONS
    if arguments.sweep:  # in a folder of its own, beside the whole evaluation
        asked, evaluation.name = {"sweep": sweep.answer}, f"sweep-{evaluation.name}"
    for question, answer in asked.items():
        print(f"\n{question}")
        print(as_text(evaluation.ask(answer)))
    if refused := sweep.refused(evaluation.table):
        print(f"\nrefused, as they cost recall: {'; '.join(refused)}")
    leading = [row for row in evaluation.table if row.question in LEADING]
    print(f"\nIn short\n{as_text(leading)}")
    if processes.is_main_process:
        print(f"\n{finish(evaluation)}")


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
