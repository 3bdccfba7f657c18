"""Speed on a CPU: training and sampling beside diffusers' own, or beside another checkout of this.

`python -m benchmarks.cpu` (`make bench`) times a training step of `celeba_hq` beside that of
diffusers' script, and a picture beside its pipeline: both alternate, each in a process of its own,
and the ratio counts. `--against PATH` times training steps of three presets beside those of another
checkout, such as `git worktree add ../before f1dcb11`.
"""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks import timing
from command_line import command, path
from config import ROOT
from files import write_json
from training.run_folder import describe_environment

BATCH = 32
PEER = "benchmarks.diffusers_peer"
SETTINGS = {"DDIM, 50 steps": ("ddim", 50), "DPM-Solver++, 20 steps": ("dpm++", 20)}
PRESETS = {"demo": 32, "laptop": 32, "celeba_hq": 8}  # for --against, with their batches
Jobs = dict[str, tuple[tuple[object, ...], Path]]  # name -> job and checkout, of two


@command
def main() -> None:
    """Measure, print a table, write `outputs/bench/cpu.json` or `against.json`."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=10, help="in all (default: 10)")
    options.add_argument("--preset", default="celeba_hq", help="beside diffusers: of its shapes")
    options.add_argument("--against", type=path, help="another checkout of this repository")
    options.add_argument("--threads", type=int, help="of each process; default: PyTorch's choice")
    arguments = options.parse_args()
    other = arguments.against
    comparisons = against(other.resolve()) if other else beside_diffusers(arguments.preset)
    print(f"about {arguments.minutes:.3g} minutes: {', '.join(comparisons)}")
    first, second = ("this", other.name) if other else ("ours", "diffusers")
    print(f"| what | {first}, s | {second}, s | times longer | of processor time |")
    print("|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for what, jobs in comparisons.items():
        rows.append(compared(what, jobs, arguments.minutes / len(comparisons), arguments.threads))
        print(f"| {' | '.join(rows[-1]['row'])} |", flush=True)
        write(timing.OUT / f"{'against' if other else 'cpu'}.json", rows)


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
        jobs = {"this": (job, ROOT), "other": (job, checkout)}
        found[f"training step of {preset}, batch {batch}"] = jobs
    return found


def compared(what: str, jobs: Jobs, minutes: float, threads: int | None) -> dict[str, Any]:
    """Seconds of two jobs in each round, and the row that tells them."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(timing.Worker(*job, checkout=checkout, threads=threads))
            for name, (job, checkout) in jobs.items()
        }
        times = timing.alternate(workers, minutes, what)
    seconds = [f"{timing.median(blocks):.3g}" for blocks in times.values()]
    longer = [timing.ratio(*times.values(), kind) for kind in ("clock", "processor")]
    return {"row": [what, *seconds, *longer], "threads": threads, "seconds": times}


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Keep what is known so far, with versions, commit and machine."""
    # macOS and Windows do not tell which cores a process may use.
    mine = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    machine = describe_environment(torch.device("cpu")) | {"cores": len(mine)}
    write_json(file, {"machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
