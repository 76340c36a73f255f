# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What would run, what was rejected, and why: `python -m selection COMMAND`.

    explain            which kernel serves a layer on a device, and what it runs for some M
    matrix             every scheme on every device
    diff FIRST SECOND  the schemes that two devices serve differently

    python -m selection explain --scheme=w4a16-g128 --device=a100 --k=4096 --n=14336 --m=1,64,4096
    python -m selection explain --weight_type=uint4 --zero_points --group_size=64 --act=float16
    python -m selection matrix --devices=h200,cpu --json
    python -m selection diff h200 a100

Without --device the answer is for the machine it runs on. Schemes: see `--scheme=help`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from absl import app, flags

from jaxkernels.problem import DEVICES
from jaxkernels.scalar_types import scalar_types
from selection import matrix as tables
from selection.choice import as_json
from selection.choose import choose_kernel
from selection.configs import MPLinearLayerConfig
from selection.platforms import get_platform, platform_for
from selection.schemes import SCHEMES, scheme

_SCHEME = flags.DEFINE_list("scheme", [], "schemes by name, comma-separated; help lists them")
_DEVICE = flags.DEFINE_string("device", None, f"one of {', '.join(DEVICES)}; default: the live one")
_DEVICES = flags.DEFINE_list("devices", list(tables.DEVICES_SHOWN), "columns of the matrix")
_M = flags.DEFINE_list("m", ["16", "4096"], "rows of activations to plan for, comma-separated")
_N = flags.DEFINE_integer("n", 4096, "out-features", lower_bound=1)
_K = flags.DEFINE_integer("k", 4096, "in-features", lower_bound=1)
_BACKEND = flags.DEFINE_string("backend", None, "a --linear-backend value, such as marlin")
_JSON = flags.DEFINE_bool("json", False, "print JSON")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "print the matrix as Markdown")
_WEIGHT = flags.DEFINE_string("weight_type", None, "a mixed-precision layer by hand: uint4b8, ...")
_GROUP = flags.DEFINE_integer("group_size", 128, "with --weight_type; -1 is the whole of K")
_ACT = flags.DEFINE_string("act", "bfloat16", "with --weight_type: dtype of the activations")
_ZERO_POINTS = flags.DEFINE_bool("zero_points", False, "with --weight_type")
_ACT_ORDER = flags.DEFINE_bool("act_order", False, "with --weight_type")


def _print(text: str, style: str | None = None) -> None:
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        print(text)
        return
    console = Console(soft_wrap=True, highlight=False)
    for line in text.splitlines():
        bright = {"SLOW PATH": "bold red", "  not ": "dim", "  note": "yellow"}
        found = next((s for mark, s in bright.items() if mark in line[:16]), style)
        console.print(Text(line, style=found or ""))
        style = None


def _table(title: str, head: list[str], rows: list[list[str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        print(title)
        for row in [head, *rows]:
            cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
            print("  ".join(cells).rstrip())
        return
    print(title)
    table = Table(header_style="bold")
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 240
    Console(width=width).print(table)


def _layers() -> list[tuple[str, str, Any]]:
    """(name, priority list, config) of each layer asked about."""
    k, n = _K.value, _N.value
    if _WEIGHT.value is not None:
        weight_type = getattr(scalar_types, _WEIGHT.value, None)
        if weight_type is None:
            names = [name for name in vars(scalar_types) if not name.startswith("_")]
            raise ValueError(f"--weight_type: expected one of {', '.join(names)}")
        config = MPLinearLayerConfig(
            (k, n),
            (k, n),
            weight_type,
            _ACT.value,
            _GROUP.value,
            _ZERO_POINTS.value,
            _ACT_ORDER.value,
        )
        return [(_WEIGHT.value, "mp", config)]
    names = _SCHEME.value or ["w4a16-g128"]
    return [(name, scheme(name).kind, scheme(name).config(k, n)) for name in names]


def _explain() -> None:
    try:
        rows = [int(m) for m in _M.value]
    except ValueError:
        raise ValueError(f"--m: expected whole numbers, got {','.join(_M.value)}") from None
    if not rows or min(rows) < 1:
        raise ValueError(f"--m: expected numbers of rows, at least 1; got {','.join(_M.value)}")
    platform = get_platform() if _DEVICE.value is None else platform_for(_DEVICE.value)
    answers = []
    for _, kind, config in _layers():
        choice = choose_kernel(
            config, kind=kind, device=platform, backend=_BACKEND.value, quiet=True
        )
        if _JSON.value:
            answers.append(as_json(choice, rows, _N.value, _K.value))
            continue
        text = choice.explain(rows[0], _N.value, _K.value).splitlines()
        for m in rows[1:]:
            text += choice.explain(m, _N.value, _K.value).splitlines()[-1:]
        _print("\n".join(text), "bold")
    if _JSON.value:
        print(json.dumps(answers, indent=2))


def _matrix() -> None:
    devices = _DEVICES.value
    rows = tables.matrix(_SCHEME.value, devices)
    if _JSON.value:
        cells = [
            {
                "scheme": cell.scheme,
                "device": cell.device,
                "kernel": None if cell.kernel is None else cell.kernel.__name__,
                "implementation": cell.implementation,
                "slow": cell.slow,
            }
            for _, row in rows
            for cell in row
        ]
        print(json.dumps(cells, indent=2))
    elif _MARKDOWN.value:
        print(tables.markdown(_SCHEME.value, devices))
    else:
        body = [[name, *(str(cell) for cell in row)] for name, row in rows]
        _table("Who serves what, and what runs it", ["scheme", *devices], body)


def _diff(first: str, second: str) -> None:
    found = tables.differences(first, second, _SCHEME.value)
    if _JSON.value:
        print(json.dumps([[a.scheme, str(a), str(b)] for a, b in found], indent=2))
        return
    body = [[a.scheme, str(a), str(b)] for a, b in found]
    _table(f"Served differently by {first} and {second}", ["scheme", first, second], body)
    print(f"{len(_SCHEME.value or SCHEMES) - len(found)} schemes are served alike.")


def main(argv: list[str]) -> None:
    """Runs one command."""
    command, *arguments = argv[1:] or [""]
    if "help" in _SCHEME.value:
        _table(
            "Schemes",
            ["name", "list", "what"],
            [[s.name, s.kind, s.what] for s in SCHEMES.values()],
        )
    elif command == "explain" and not arguments:
        _explain()
    elif command == "matrix" and not arguments:
        _matrix()
    elif command == "diff" and len(arguments) == 2:
        _diff(*arguments)
    else:
        raise ValueError(
            f"expected explain, matrix or diff FIRST SECOND, got {argv[1:] or 'nothing'}"
        )


def _run(argv: list[str]) -> int:
    try:
        main(argv)
    except ValueError as error:
        print(f"error: {error}\nSee python -m selection --help", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    app.run(_run)
