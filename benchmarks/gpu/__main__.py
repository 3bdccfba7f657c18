"""The first hour on a GPU, in one table to paste into an issue.

`python -m benchmarks.gpu [--quick]`, or `make bench-gpu`. The device is the first that is there
(LDM_DEVICE names another). The first row compares a training step with the CPU's; a device that
computes something else ends the command. Where memory does not suffice for a row, the row says so.
Nothing is downloaded: weights are random. Writes `outputs/bench/gpu.json` after every row.
"""

import argparse

import diffusers
import transformers

from benchmarks import measure
from benchmarks.gpu import agreement, device, pictures, resume, training
from benchmarks.gpu.cases import FULL, QUICK
from benchmarks.gpu.table import Table
from command_line import command
from models.device import choose_device, require_accelerator, tune_kernels


@command
def main() -> None:
    """Measure and print row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models, for a CPU too")
    case = QUICK if parser.parse_args().quick else FULL
    for library in (diffusers, transformers):  # the table is all there is to read
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    chosen = choose_device()
    require_accelerator(chosen, case.config.data.image_size)
    tune_kernels(chosen)
    table = Table(device.describe(chosen))
    table.begin()
    found = table.add(
        "difference from the CPU",
        "one step in float32",
        lambda: agreement.differences(chosen),
        agreement.show,
    )
    agreement.require(found or {})
    training.add_rows(table, case, chosen)
    pictures.add_rows(table, case, chosen)
    values = table.add("SIGKILL", "a small run, resumed", resume.killed_and_resumed, resume.show)
    if values:
        resume.require(values)
    print(f"\n-> {measure.OUT / 'gpu.json'}")


if __name__ == "__main__":
    main()
