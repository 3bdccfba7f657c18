"""Speed on a CPU: training and sampling beside diffusers' own, or beside another checkout of this.

`python -m benchmarks.cpu` (`make bench`) times a training step of `celeba_hq` beside that of
diffusers' script, and a picture beside its pipeline: both alternate, each in a process of its own,
and the ratio counts. `--against PATH` times training steps of three presets beside those of another
checkout, such as `git worktree add ../before f1dcb11`.
"""

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import timing
from command_line import command, path
from config import ROOT, get_config

BATCH = 8  # small, so that ten minutes are enough for a slow machine
PEER = "benchmarks.diffusers_peer"
SETTINGS = {"DDIM, 50 steps": ("ddim", 50), "DPM-Solver++, 20 steps": ("dpm++", 20)}
PRESETS = {"demo": 32, "laptop": 32, "celeba_hq": 8}  # for --against, with their batches
Jobs = dict[str, tuple[tuple[object, ...], Path]]  # name -> job and checkout, of two


@command
def main() -> None:
    """Measure, print a table, write `outputs/bench/cpu` or `outputs/bench/against`."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=10, help="in all (default: 10)")
    options.add_argument("--preset", default="celeba_hq", help="beside diffusers: of its shapes")
    options.add_argument("--against", type=path, help="another checkout of this repository")
    options.add_argument("--threads", type=int, help="of each process; default: PyTorch's choice")
    arguments = options.parse_args()
    other, preset = arguments.against, get_config(arguments.preset).name
    comparisons = against(other.resolve()) if other else beside_diffusers(preset)
    # torch takes seconds to import: a wrong word is answered before that.
    import torch

    from benchmarks.report import Report

    folder = timing.OUT / ("against" if other else "cpu")
    report = Report(folder, torch.device("cpu"), arguments.minutes)
    print(f"about {arguments.minutes:.3g} minutes: {'; '.join(comparisons)}")
    for number, (what, jobs) in enumerate(comparisons.items()):
        seconds = report.left() / (len(comparisons) - number)
        report.add(what, partial(compared, what, jobs, seconds, arguments.threads))
    if report.failed():
        sys.exit(f"failed: {', '.join(report.failed())}; {folder}/results.json tells more")


def beside_diffusers(preset: str) -> dict[str, Jobs]:
    """A training step, and a picture by each sampler's setting."""
    ours, peer = ("training_step", preset, BATCH), (f"{PEER}:training_step", preset, BATCH)
    found = {f"training step, batch {BATCH}": {"ours": (ours, ROOT), "diffusers": (peer, ROOT)}}
    for what, setting in SETTINGS.items():
        names = {"ours": "our_sampling", "diffusers": "pipeline_sampling"}
        jobs = {who: ((f"{PEER}:{job}", preset, *setting), ROOT) for who, job in names.items()}
        found[f"picture, {what}"] = jobs
    return found


def against(checkout: Path) -> dict[str, Jobs]:
    """The training step of each preset."""
    found = {}
    for preset, batch in PRESETS.items():
        job = ("training_step", preset, batch)
        found[f"training step of {preset}, batch {batch}"] = {
            "this": (job, ROOT),
            f"other ({checkout.name})": (job, checkout),
        }
    return found


def compared(what: str, jobs: Jobs, seconds: float, threads: int | None) -> dict[str, Any]:
    """Seconds of two jobs, and how many times longer the second one takes."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(timing.Worker(*job, checkout=checkout, threads=threads))
            for name, (job, checkout) in jobs.items()
        }
        times = timing.alternate(workers, seconds, what)
    row = {f"seconds of {name}": timing.median(blocks) for name, blocks in times.items()}
    row["times longer"] = timing.ratio(*times.values(), "clock")
    row["of processor time"] = timing.ratio(*times.values(), "processor")
    return row | {"threads": threads, "blocks": times}


if __name__ == "__main__":
    main()
