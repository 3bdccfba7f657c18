"""One job of a benchmark in a process of its own; `timing.Worker` starts it and asks for blocks.

For each line of its input, a number of seconds, it repeats the job for so long and prints the mean
seconds of a call. It ends when its input does: that is, with the process that started it.

It is run on other checkouts of this repository too, so it uses only what they all have.
"""

import contextlib
import dataclasses
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator

Call = Callable[[], object]


def training_step(preset: str, batch: str) -> Iterator[Call]:
    """A step of the real loop, of a preset over random latents."""
    from benchmarks import full_size, runs
    from config import ROOT, get_config
    from models.text_encoder import TextEncoder
    from training.loop import train

    config = runs.timed(get_config(preset), batch_size=int(batch))
    # Where hidden states are kept, each caption has been met after two epochs of two steps.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, caption_wordings=1))
    folder = ROOT / "assets" / "demo_clip"
    is_small = config.unet.text_width == 128
    encoder = TextEncoder.from_pretrained(str(folder)) if is_small else full_size.text_encoder()
    with runs.experiment(config, encoder, 2 * int(batch)) as opened:
        steps = train(opened)
        for _ in range(6):
            next(steps)
        yield lambda: next(steps)
        steps.close()


def peer_training_step(preset: str, batch: str) -> Iterator[Call]:
    """A step of diffusers' script."""
    from benchmarks.diffusers_peer import training_step as step
    from config import get_config

    yield step(get_config(preset), int(batch))


def sampling(preset: str, sampler: str, steps: str) -> Iterator[Call]:
    """One picture of ours."""
    from benchmarks.diffusers_peer import our_sampling
    from config import get_config

    yield our_sampling(get_config(preset), sampler, int(steps))


def peer_sampling(preset: str, sampler: str, steps: str) -> Iterator[Call]:
    """One picture of diffusers' pipeline."""
    from benchmarks.diffusers_peer import pipeline_sampling
    from config import get_config

    yield pipeline_sampling(get_config(preset), sampler, int(steps))


def sleeping(seconds: str) -> Iterator[Call]:
    """For the tests."""
    yield lambda: time.sleep(float(seconds))


JOBS = {job.__name__: contextlib.contextmanager(job) for job in (
    training_step, peer_training_step, sampling, peer_sampling, sleeping
)}  # fmt: skip


def timed(call: Call, min_seconds: float) -> dict[str, float]:
    """Mean seconds of a call, repeated for so long and once at least."""
    count, clock, processor = 0, time.perf_counter(), time.process_time()
    while not count or time.perf_counter() - clock < min_seconds:
        call()
        count += 1
    taken = {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
    return {name: seconds / count for name, seconds in taken.items()}


def main() -> None:
    """Answer blocks until the input ends."""
    wanted: queue.SimpleQueue[float] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            wanted.put(float(line))
        os._exit(1)  # in the middle of a computation too

    threading.Thread(target=read, daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with JOBS[sys.argv[1]](*sys.argv[2:]) as call:
        while True:
            print(json.dumps(timed(call, wanted.get())), file=answers, flush=True)


if __name__ == "__main__":
    main()
