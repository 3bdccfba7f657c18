"""Signals that ask a run to stop take effect after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Ctrl-C; the end of a job; a closed terminal; SLURM's warning before its time limit. Windows
# knows the first two.
STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Turn the first of these signals into a set event, so that the current step is finished.

    A second one takes effect at once. One that is ignored stays so: under `nohup` a closed terminal
    stops nothing. Outside the main thread nothing is changed: Python delivers no signals there.
    """
    stop, before = threading.Event(), {}

    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
