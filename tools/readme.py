# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Writes README's generated parts, each between two marker comments: `make readme`.

The support matrix and the explanation come from `python -m selection`; the table of measurements is
`python -m benchmarks --readme`'s.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MATRIX = "matrix --devices=h200,a100,cpu --markdown"
EXPLAIN = "explain --scheme=w4a16-g128 --device=h200 --n=4096 --k=4096 --m=1,4096"


def selection(arguments: str) -> str:
    """What `python -m selection` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "selection", *arguments.split()],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout.strip()


def generated() -> dict[str, str]:
    """Each part's name and text."""
    command = f"python -m selection {EXPLAIN}"
    return {
        "matrix": selection(MATRIX),
        "explain": f"```\n$ {command}\n{selection(EXPLAIN)}\n```",
    }


def part(text: str, name: str) -> str:
    """What README has between the markers of a part."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md needs {begin} and {end}, once each")
    return text.split(begin)[1].split(end)[0].strip()


def filled(text: str, parts: dict[str, str]) -> str:
    """README with its parts replaced."""
    for name, new in parts.items():
        part(text, name)
        head, rest = text.split(f"<!-- {name}:begin -->")
        tail = rest.split(f"<!-- {name}:end -->")[1]
        text = f"{head}<!-- {name}:begin -->\n{new}\n<!-- {name}:end -->{tail}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(), generated()))
