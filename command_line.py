"""What all commands share: `--preset`, `--set`, and errors that end in one clear line."""

import argparse
import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from config import PRESETS, ROOT, Config, get_config


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


def config_from(arguments: argparse.Namespace) -> Config:
    """The preset with the changes of the command line.

    Raises:
        ValueError: an unknown preset or setting, or a value that is refused.
    """
    return get_config(arguments.preset, arguments.changes)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """End a command in one line for Ctrl-C and for the errors that this repository raises itself.

    Those name the thing and the remedy. An error raised anywhere else keeps its traceback.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except KeyboardInterrupt as stopped:
            print(f"{stopped or 'stopped'}", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if not _is_own(error):
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    return run


def _is_own(error: Exception) -> bool:
    """Whether a file of this repository raised it, by a `raise` of its own."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(frame.filename).resolve()
    is_here = ROOT in path.parents and not any(
        part in ("site-packages", ".venv") for part in path.parts
    )
    return is_here and (frame.line or "").strip().startswith("raise")
