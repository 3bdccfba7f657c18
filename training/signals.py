"""Ctrl-C and SIGTERM wait for the step under way."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a set event, so that the step under way is finished
    first.

    A second one acts at once. Outside the main thread nothing is changed: Python delivers no
    signals there.
    """
    stop, before = threading.Event(), {}

    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
