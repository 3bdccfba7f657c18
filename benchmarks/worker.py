"""One job of a benchmark in a process of its own; `timing.Worker` starts it and asks for blocks.

For each line of its input, a number of seconds, it repeats the job for so long and prints the mean
seconds of a call. It ends when its input does: that is, with the process that started it.

It is run on other checkouts of this repository too, so it uses only what they all have.
"""

import dataclasses
import importlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], object]


def training_step(preset: str, batch: str) -> Call:
    """A step of the real loop, of a preset over random latents."""
    from benchmarks import runs
    from config import get_config
    from training.loop import train

    config = runs.timed(get_config(preset), batch_size=int(batch))
    # Where hidden states are kept, each caption has been met after two epochs of two steps.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, caption_wordings=1))
    opened = runs.experiment(config, text_encoder(config), 2 * int(batch))
    steps = train(opened.__enter__())  # open until the process ends
    for _ in range(6):
        next(steps)
    return lambda: (next(steps), opened)


def text_encoder(config: Any) -> Any:
    """The CLIP that ships, or one of full size with random weights, as the UNet's width says."""
    import torch

    from benchmarks import full_size
    from config import ROOT
    from models.text_encoder import TextEncoder

    torch.manual_seed(0)
    if config.unet.text_width == 512:
        return full_size.text_encoder()
    return TextEncoder.from_pretrained(str(ROOT / "assets" / "demo_clip"))


def sleeping(seconds: str) -> Call:
    """For the tests."""
    return lambda: time.sleep(float(seconds))


def prepared(job: str, *arguments: str) -> Call:
    """A job's call: one of this file, or "<module>:<function>"."""
    importlib.import_module("config")  # before torch, which reads from it how threads wait
    module, _, name = job.rpartition(":")
    make = getattr(importlib.import_module(module), name) if module else globals()[name]
    return make(*arguments)


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
    call = prepared(*sys.argv[1:])
    while True:
        print(json.dumps(timed(call, wanted.get())), file=answers, flush=True)


if __name__ == "__main__":
    main()
