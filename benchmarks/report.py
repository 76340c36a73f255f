# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Results as files, tables and pictures.

A results file is `{header, records}`; a record is one cell (see `make_record`). README's table is
written from such files between two marker comments, so that it cannot drift from what was measured.
"""

import datetime
import json
import math
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.suites import CEILINGS, FAMILIES, Ceilings, Cell, floor_us, flops, moved_bytes

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
# Token counts that behave alike: the bars of the project are set for these.
BUCKETS = ((1, 16), (17, 64), (65, 128), (129, 512), (513, 1 << 62))


def make_record(
    cell: Cell,
    *,
    kernel: str = "",
    config: str = "",
    us: float | None = None,
    peers: dict[str, float] | None = None,
    others: dict[str, float] | None = None,
    rel_err: float | None = None,
    failed: dict[str, str] | None = None,
    ceilings: Ceilings | None = None,
) -> dict:
    """One cell's record.

    Args:
      us: our time in microseconds, None where the cell failed (`failed` says why).
      peers: eligible peers' times; the ratio counts only these.
      others: times shown beside them that do less, or more, than our kernel.
      failed: "ours" or a peer's name -> why it has no time.

    Returns:
      family, kernel, config, m, n, k, group, us, tflops, gbps, floor_us, peers,
      ratio_to_best_peer (best peer / ours: above 1 is ahead), rel_err, and where there are any
      other_peers and failed.
    """
    peers, floor = peers or {}, floor_us(cell, ceilings)
    host = FAMILIES[cell.family].suite == "bridge"
    work, moved = (0.0, 0.0) if host else (flops(cell), moved_bytes(cell))
    record = dict(
        family=cell.family,
        kernel=kernel,
        config=config,
        m=cell.m,
        n=cell.n,
        k=cell.k,
        group=cell.group,
        us=_rounded(us),
        tflops=_rounded(work / us / 1e6, 1) if us and work else None,
        gbps=_rounded(moved / us / 1e3, 1) if us and moved else None,
        floor_us=_rounded(floor),
        peers={name: _rounded(t) for name, t in peers.items()},
        ratio_to_best_peer=_rounded(min(peers.values()) / us) if us and peers else None,
        rel_err=None if rel_err is None else float(f"{rel_err:.3g}"),
    )
    if others:
        record["other_peers"] = {name: _rounded(t) for name, t in others.items()}
    if failed:
        record["failed"] = failed
    return record


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def commit() -> str:
    """The commit that is checked out, "unknown" outside a repository."""
    line = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def header(command: str, device: str, driver: str, versions: dict[str, str]) -> dict:
    """What a reader needs to repeat a measurement. A `note` may be added by hand."""
    return dict(
        commit=commit(),
        device=device,
        driver=driver,
        versions=versions,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=command,
        method="random data, weights rotated over 160 MB, CUDA-graph replay, median, "
        "0.1 s of rest before calls over 50 us",
        ceilings=None if (c := CEILINGS.get(device)) is None else vars(c),
    )


def save(path: Path, head: dict, records: Sequence[dict]) -> None:
    """Writes a results file whole or not at all: a run may be cut off at any cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(r) for r in records)
    text = f'{{"header": {json.dumps(head, indent=1)},\n"records": [\n{lines}\n]}}\n'
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as f:
        f.write(text)
    os.chmod(name, 0o644)
    os.replace(name, path)


def load(path: Path) -> tuple[dict, list[dict]]:
    """A results file's header and records."""
    data = json.loads(path.read_text())
    return data["header"], data["records"]


def key(record: dict) -> tuple:
    return tuple(record[f] for f in ("family", "m", "n", "k", "group"))


def merge(old: Iterable[dict], new: Iterable[dict]) -> list[dict]:
    """Old records with those measured again replaced, new cells last."""
    records = {key(r): r for r in old}
    records.update((key(r), r) for r in new)
    return list(records.values())


def geomean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


def bucket(m: int) -> str:
    low, high = next(b for b in BUCKETS if m <= b[1])
    return f"M>={low}" if high >= 1 << 62 else f"{low}<=M<={high}"


def summary(records: Sequence[dict]) -> list[dict]:
    """Per family, group and bucket of M: mean and worst ratio, mean share of the floor."""
    rows: dict[tuple, list[dict]] = {}
    for r in records:
        where = "all" if r["n"] is None else bucket(r["m"])
        rows.setdefault((r["family"], r["group"], where), []).append(r)
    out = []
    for (family, group, where), cells in rows.items():
        timed = [r for r in cells if r["us"]]
        ratios = [r["ratio_to_best_peer"] for r in timed if r["ratio_to_best_peer"]]
        shares = [r["floor_us"] / r["us"] for r in timed if r["floor_us"]]
        out.append(
            dict(
                family=family,
                group=group,
                where=where,
                cells=len(cells),
                failed=len(cells) - len(timed),
                ratio=geomean(ratios) if ratios else None,
                worst=min(ratios) if ratios else None,
                share=geomean(shares) if shares else None,
            )
        )
    return out


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _group(group: int | None) -> str:
    return "" if group is None else "whole K" if group == -1 else str(group)


def print_tables(records: Sequence[dict], console) -> None:
    """A rich table a family: a row a cell, the best eligible peer beside ours."""
    from rich.table import Table

    for family in dict.fromkeys(r["family"] for r in records):
        table = Table(title=family, title_justify="left")
        mine = [r for r in records if r["family"] == family]
        swept = any("best_us" in r for r in mine)
        names = "shape M group us peer_us best_peer ratio floor_us %floor rel_err".split()
        for name in names + ["own best"] * swept:
            table.add_column(name, justify="left" if name in ("shape", "best_peer") else "right")
        for r in mine:
            shape = f"K={r['k']}" if r["n"] is None else f"{r['n']}x{r['k']}"
            best = min(r["peers"], key=r["peers"].get, default="-")
            why = (r.get("failed") or {}).get("ours")
            share = 100 * r["floor_us"] / r["us"] if r["us"] and r["floor_us"] else None
            ratio = r["ratio_to_best_peer"]
            style = None if ratio is None else "green" if ratio >= 1 else "red"
            table.add_row(
                shape,
                str(r["m"]),
                _group(r["group"]),
                _number(r["us"], ".1f") if r["us"] else f"[red]{why}[/red]",
                _number(r["peers"].get(best), ".1f"),
                best,
                f"[{style}]{ratio:.2f}[/{style}]" if style else "-",
                _number(r["floor_us"], ".1f"),
                _number(share, ".0f"),
                _number(r["rel_err"], ".2g"),
                *([_own_best(r)] * swept),
            )
        console.print(table)
    table = Table(title="geometric means", title_justify="left")
    for name in ("family", "group", "where", "cells", "failed", "ratio", "worst", "% of floor"):
        table.add_column(name, justify="left" if name in ("family", "where") else "right")
    for row in summary(records):
        table.add_row(
            row["family"],
            _group(row["group"]),
            row["where"],
            str(row["cells"]),
            str(row["failed"]),
            _number(row["ratio"]),
            _number(row["worst"]),
            _number(row["share"] and 100 * row["share"], ".0f"),
        )
    console.print(table)


def _own_best(record: dict) -> str:
    """How far the chosen config is from the fastest of all, and which that is."""
    if "best_us" not in record:
        return "-"
    return f"{record['us'] / record['best_us']:.2f}x of {record['best_config']}"


def readme_table(files: Sequence[tuple[dict, list[dict]]]) -> str:
    """The Markdown table of README: a row a family and group, a column a bucket of M.

    A cell that several files have is the largest file's.
    """
    if not files:
        return "No results yet: `make bench` on a GPU makes them."
    records: dict[tuple, dict] = {}
    for _, some in sorted(files, key=lambda file: -len(file[1])):
        for r in some:
            records.setdefault(key(r), r)
    rows: dict[tuple, dict[str, dict]] = {}
    for row in summary(sorted(records.values(), key=lambda r: list(FAMILIES).index(r["family"]))):
        rows.setdefault((row["family"], _group(row["group"])), {})[row["where"]] = row
    columns = [bucket(low) for low, _ in BUCKETS]
    names = [c.replace("<=", " <= ").replace(">=", " >= ") for c in columns]
    lines = [
        f"| family | group | cells | {' | '.join(names)} |",
        "|---|---|---:|" + "---:|" * len(columns),
    ]
    for (family, group), found in rows.items():
        count, failed = (sum(r[what] for r in found.values()) for what in ("cells", "failed"))
        cells = f"{count}" + (f" ({failed} failed)" if failed else "")
        if "all" in found:  # conversions: whatever M
            texts = [f"all: {_ratio(found['all'])}", *[""] * (len(columns) - 1)]
        else:
            texts = [_ratio(found[c]) if c in found else "" for c in columns]
        lines.append(f"| {family} | {group} | {cells} | {' | '.join(texts)} |")
    lines.append("")
    sources: dict[str, list[str]] = {}
    for head, _ in files:
        versions = ", ".join(f"{k} {v}" for k, v in head["versions"].items())
        day = head["date"].split()[0]
        text = f"{head['device']}, driver {head['driver']}, {day}, commit {head['commit']}, "
        note = f" ({head['note']})" if "note" in head else ""
        sources.setdefault(f"- {text}{versions}{note}: ", []).append(f"`{head['command']}`")
    lines += [source + ", ".join(commands) for source, commands in sources.items()]
    return "\n".join(lines)


def _ratio(row: dict) -> str:
    """The mean of ratios, and the worst in brackets where there are several."""
    if row["ratio"] is None:
        return "-"
    several = row["cells"] - row["failed"] > 1
    return _number(row["ratio"]) + (f" ({_number(row['worst'])})" if several else "")


def write_readme(readme: Path, files: Sequence[tuple[dict, list[dict]]]) -> None:
    """Replaces what stands between the markers in `readme`.

    Raises:
      ValueError: the markers are not there, once each and in order.
    """
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme}: expected one {BEGIN} and after it one {END}")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{readme_table(files)}\n{END}{after}")


def draw_roofline(records: Sequence[dict], path: Path, device: str) -> None:
    """TFLOP/s (GB/s for conversions) against arithmetic intensity, ours and the best peer's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = [r for r in records if r["us"] and r["gbps"]]
    products = [r for r in timed if r["n"] is not None]
    figure, axes = plt.subplots(figsize=(9, 6))
    if products:
        _roofline(axes, products, device)
    else:
        _bandwidth(axes, timed, device)
    axes.grid(True, which="both", alpha=0.2)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _roofline(axes, records: Sequence[dict], device: str) -> None:
    ceilings = CEILINGS.get(device)
    for i, family in enumerate(dict.fromkeys(r["family"] for r in records)):
        mine = [r for r in records if r["family"] == family]
        cells = [Cell(r["family"], r["m"], r["n"], r["k"], r["group"]) for r in mine]
        intensity = [flops(c) / moved_bytes(c) for c in cells]
        axes.plot(intensity, [r["tflops"] for r in mine], "o", c=f"C{i}", ms=5, label=family)
        met = [(a, c, r) for a, c, r in zip(intensity, cells, mine, strict=True) if r["peers"]]
        best = [flops(c) / min(r["peers"].values()) / 1e6 for _, c, r in met]
        axes.plot([a for a, _, _ in met], best, "x", c=f"C{i}", ms=5, alpha=0.7)
    if ceilings:
        rates = {FAMILIES[r["family"]].rate for r in records}
        xs = [2.0 ** (e / 16) for e in range(0, 13 * 16 + 1)]
        for rate in sorted(rates, key=ceilings.tflops.get):
            top = ceilings.tflops[rate]
            roof = [min(top, x * ceilings.read_gbps / 1e3) for x in xs]
            axes.plot(xs, roof, "k-", lw=0.8, alpha=0.6)
            side = "top" if rate == "fp8" else "bottom"  # int8's roof lies just above it
            axes.annotate(f"{rate} {top:.0f}", (xs[-1], top), fontsize=8, ha="right", va=side)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte moved", ylabel="TFLOP/s")
    axes.set_title(f"{device}: ours (dots) and the best peer (crosses) under the roofline")


def _bandwidth(axes, records: Sequence[dict], device: str) -> None:
    for i, family in enumerate(dict.fromkeys(r["family"] for r in records)):
        mine = sorted((r for r in records if r["family"] == family), key=lambda r: r["m"] * r["k"])
        moved = [3 * r["m"] * r["k"] / 1e6 for r in mine]
        axes.plot(moved, [r["gbps"] for r in mine], "o-", c=f"C{i}", label=family)
        met = [(b, r) for b, r in zip(moved, mine, strict=True) if r["peers"]]
        best = [r["gbps"] * r["us"] / min(r["peers"].values()) for _, r in met]
        axes.plot([b for b, _ in met], best, "x:", c=f"C{i}", alpha=0.6)
    if device in CEILINGS:
        axes.axhline(CEILINGS[device].copy_gbps, c="k", lw=0.8)
    axes.set(xscale="log", xlabel="MB moved", ylabel="GB/s (read + written)")
    axes.set_title(f"{device}: ours (dots) and the best peer (crosses)")
