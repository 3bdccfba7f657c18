"""Speed on a CPU: training and sampling beside diffusers' own, or beside another checkout of this.

`python -m benchmarks.cpu` (`make bench`) times a training step of `celeba_hq` beside that of
diffusers' script, and a picture beside its pipeline: both alternate, each in a process of its own,
and the ratio counts. `--against PATH` times training steps of three presets beside those of another
checkout, such as `git worktree add ../before f1dcb11`.
"""

import argparse
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import timing
from command_line import command
from config import ROOT

BATCH = 32
PEER = "benchmarks.diffusers_peer"
SETTINGS = {"DDIM, 50 steps": ("ddim", 50), "DPM-Solver++, 20 steps": ("dpm++", 20)}
PRESETS = {"demo": 32, "laptop": 32, "celeba_hq": 8}  # for --against, with their batches


@command
def main() -> None:
    """Measure, print a table, write `outputs/bench/cpu.json` or `against.json`."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=10, help="in all (default: 10)")
    options.add_argument(
        "--preset", default="celeba_hq", help="beside diffusers: this one's shapes"
    )
    options.add_argument("--against", type=Path, help="another checkout of this repository")
    options.add_argument("--threads", type=int, help="of each process; default: PyTorch's choice")
    arguments = options.parse_args()
    if arguments.against:
        checkout = arguments.against.resolve()
        write("against", against(checkout, arguments.minutes, arguments.threads))
    else:
        write("cpu", beside_diffusers(arguments.preset, arguments.minutes, arguments.threads))


def beside_diffusers(preset: str, minutes: float, threads: int | None) -> Iterator[dict[str, Any]]:
    """Rows for training and for each sampler's setting; training takes half of the time."""
    print(f"about {minutes:.3g} minutes: a training step of {BATCH} and a picture of {preset}")
    ours, peer = ("training_step", preset, BATCH), (f"{PEER}:training_step", preset, BATCH)
    jobs = {"ours": (ours, ROOT), "diffusers": (peer, ROOT)}
    yield compared(f"training step, batch {BATCH}", jobs, minutes / 2, threads)
    for what, setting in SETTINGS.items():
        names = {"ours": "our_sampling", "diffusers": "pipeline_sampling"}
        jobs = {who: ((f"{PEER}:{job}", preset, *setting), ROOT) for who, job in names.items()}
        yield compared(f"picture, {what}", jobs, minutes / 2 / len(SETTINGS), threads)


def against(checkout: Path, minutes: float, threads: int | None) -> Iterator[dict[str, Any]]:
    """A row for the training step of each preset."""
    print(f"about {minutes:.3g} minutes: training steps of {', '.join(PRESETS)}, beside {checkout}")
    for preset, batch in PRESETS.items():
        job = ("training_step", preset, batch)
        jobs = {"this": (job, ROOT), "other": (job, checkout)}
        what = f"training step of {preset}, batch {batch}"
        yield compared(what, jobs, minutes / len(PRESETS), threads)


def compared(
    what: str,
    jobs: dict[str, tuple[tuple[object, ...], Path]],
    minutes: float,
    threads: int | None,
) -> dict[str, Any]:
    """Seconds of two jobs, each of a checkout, and how many times longer the second takes."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(timing.Worker(*job, checkout=checkout, threads=threads))
            for name, (job, checkout) in jobs.items()
        }
        times = timing.alternate(workers, minutes, what)
    kinds = {kind: timing.ratio(*times.values(), kind) for kind in ("clock", "processor")}
    return {"what": what, "threads": threads, "seconds": times, "times_longer": kinds}


def write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as a table in Markdown and keep them, each as soon as it is known."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        if not kept:
            first, second = row["seconds"]
            print(f"| what | {first}, s | {second}, s | times longer | of processor time |")
            print("|---|---|---|---|---|")
        medians = " | ".join(f"{times.median:.3g}" for times in row["seconds"].values())
        clock, processor = (show(row["times_longer"][kind]) for kind in ("clock", "processor"))
        print(f"| {row['what']} | {medians} | {clock} | {processor} |", flush=True)
        kept.append(row)
        path = timing.write(name, {"rows": kept})
    print(f"-> {path}")


def show(found: dict[str, float]) -> str:
    """A ratio with the range of its rounds."""
    return f"{found['ratio']:.3g} [{found['min']:.3g}, {found['max']:.3g}]"


if __name__ == "__main__":
    main()
