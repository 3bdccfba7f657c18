"""The oldest releases that a requirements file allows, as pip's constraints.

`python tests/lowest_versions.py requirements.txt > constraints.txt`
"""

import re
import sys
from pathlib import Path

BOUND = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)(,<[0-9.]+)?")


def lowest_versions(requirements: str) -> list[str]:
    """`name==version` for each line `name>=version`, with an upper bound behind it or not.

    Raises:
        ValueError: a line without a lower bound.
    """
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    constraints = []
    for line in filter(None, lines):
        found = BOUND.fullmatch(line)
        if not found:
            raise ValueError(f"no lower bound to test in {line!r}: write name>=version")
        constraints.append(f"{found[1]}=={found[2]}")
    return constraints


if __name__ == "__main__":
    print("\n".join(lowest_versions(Path(sys.argv[1]).read_text(encoding="utf-8"))))
