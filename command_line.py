"""What all commands share: `--preset`, `--set`, and errors that users cause in one line.

Nothing here imports torch, which takes seconds: a command reads its arguments first and imports the
rest within `main`, so that `--help` and a wrong word are answered at once.
"""

import argparse
import errno
import functools
import io
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from config import CODE, PRESETS, Config, get_config

# What a disk refuses with a reason that needs no traceback: no room, no permission, a long name, a
# file in the place of a folder, a drive that does not answer.
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ESTALE),
}

# The modules and packages of this repository; an installed one has others beside it.
OWN = {
    *("app", "benchmarks", "command_line", "config", "custom_datasets", "diffusion", "evaluate"),
    *("evaluation", "export", "files", "hub", "inference", "models", "plotting", "pretraining"),
    *("sample", "settings", "tests", "train", "training"),
}


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that knows `--preset` and `--set`."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
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


def add_checkpoint(options: argparse.ArgumentParser) -> None:
    """Let a command take other weights than the newest."""
    options.add_argument(
        "--checkpoint",
        default="newest",
        metavar="newest|best|EPOCH|PATH",
        help="which weights of the run; best: of the lowest loss of held-out faces",
    )


def config_from(arguments: argparse.Namespace) -> Config:
    """The preset with the changes of the command line.

    Raises:
        ValueError: an unknown preset or setting, or a value that is refused.
    """
    return get_config(arguments.preset, arguments.changes)


def path(text: str) -> Path:
    """A path of a command line; no shell expands the `~` of `--out=~/x`."""
    return Path(text).expanduser()


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """Reads a whole number of a command line within bounds."""

    def read(text: str) -> int:
        number = int(text)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    read.__name__ = f"whole number from {minimum} to {maximum}"  # argparse: "invalid <name> value"
    return read


def command(main: Callable[[], None]) -> Callable[[], None]:
    """End a command in one line for Ctrl-C and for the errors that this repository raises itself.

    Those name the thing and the fix. An error raised anywhere else keeps its traceback, but for a
    disk that is full or forbidden. Exit status: 2 for a wrong option, 1 for another error, 130 for
    Ctrl-C, as in a shell.
    """

    @functools.wraps(main)
    def run() -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8
        try:
            main()
        except KeyboardInterrupt as stopped:
            print(str(stopped) or "stopped", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if not _is_own(error) and getattr(error, "errno", None) not in DISK_ERRORS:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    return run


def _is_own(error: Exception) -> bool:
    """Whether a file of this repository raised it, by a `raise` of its own."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(frame.filename).resolve()
    is_here = CODE in file.parents and Path(file.relative_to(CODE).parts[0]).stem in OWN
    return is_here and (frame.line or "").startswith("raise")
