"""What all commands share: `--preset`, `--set`, and errors that end in one clear line.

Nothing here imports torch, which takes seconds: a command that reads its arguments first and
imports the rest within `main`, in a `stop_at_once` block, answers a wrong word and Ctrl-C at once.
"""

import argparse
import codecs
import difflib
import errno
import functools
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from config import PRESETS, ROOT, Config, get_config

# What a disk refuses with a reason that needs no traceback: no room, no permission, a long name,
# a file in the place of a folder, or a drive that is gone.
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ENOTCONN),
}
STOPPED = "stopped"
ASCII = {"±": "+-", "→": "->", "×": "x", "–": "-"}


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Print the message, with the nearest option for an unknown one, and exit with 2."""
        what, _, words = message.partition("unrecognized arguments: ")
        if words and not what:
            known = difflib.get_close_matches(words.split()[0], self._option_string_actions, 1)
            hint = f"did you mean {known[0]}?" if known else "a text with spaces needs quotes"
            message = f"unknown: {words} ({hint})"
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number of a command line, from `least` to `most`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            problem = f"{text!r} is not a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(problem)
        return number

    return read


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that knows `--preset` and `--set`."""
    made = Parser(description=description.splitlines()[0])
    made.add_argument(
        "--preset", help=f"one of {', '.join(PRESETS)}; default: LDM_PRESET, then celeba_hq"
    )
    made.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="change a setting of config.py; may be given several times",
    )
    return made


def config_from(arguments: argparse.Namespace) -> Config:
    """The preset with the changes of the command line.

    Raises:
        ValueError: an unknown preset or setting, or a value that is refused.
    """
    return get_config(arguments.preset, arguments.changes)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """End a command in one line for Ctrl-C and for the errors that this repository raises itself.

    Those name the thing and the remedy. An error raised anywhere else keeps its traceback, but for
    a disk that is full or forbidden. Exit status: 2 for a wrong option, 1 for another error, and as
    in a shell 130 for Ctrl-C and 141 where nobody reads the output any more (`... | head`).
    """

    @functools.wraps(main)
    def run() -> None:
        show_any_text()
        try:
            main()
            sys.stdout.flush()  # while an error can still be told
        except KeyboardInterrupt as stopped:
            print(str(stopped) or STOPPED, file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _is_of_print(error):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
                sys.exit(141)
            if not _is_own(error) and getattr(error, "errno", None) not in DISK_ERRORS:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    return run


@contextmanager
def stop_at_once() -> Iterator[None]:
    """End the process on Ctrl-C within the block, for imports and the opening of models.

    Some libraries catch whatever is raised while they are imported, Ctrl-C included, and the
    command would go on.
    """

    def stop(number: int, frame: object) -> NoReturn:
        os.write(2, f"{STOPPED}\n".encode())
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as in a shell's background, where Ctrl-C is for another
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def show_any_text() -> None:
    """Let a terminal without UTF-8 show any text: "±" as "+-", other letters by their number."""
    codecs.register_error("ascii", _as_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ascii")


def _as_ascii(error: UnicodeError) -> tuple[str, int]:
    missing = error.object[error.start : error.end]
    shown = (ASCII.get(letter) or ascii(letter)[1:-1] for letter in missing)
    return "".join(shown), error.end


def _is_own(error: Exception) -> bool:
    """Whether a file of this repository raised it, by a `raise` of its own."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(frame.filename).resolve()
    is_here = ROOT in path.parents and not {"site-packages", ".venv"} & set(path.parts)
    return is_here and (frame.line or "").startswith("raise")


def _is_of_print(error: Exception) -> bool:
    """Whether printing raised it: other pipes and sockets can break as well."""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return line.startswith(("print(", "sys.stdout."))
