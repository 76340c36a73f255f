# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""One cell: ours and every peer, each checked before it is timed; a failure becomes its reason."""

from collections.abc import Collection, Sequence
from concurrent.futures import Executor, Future, wait

from benchmarks import report, timing
from benchmarks.suites import CEILINGS, FAMILIES, Cell


def reason(error: BaseException) -> str:
    """An exception's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def is_host(cell: Cell) -> bool:
    """Whether the family measures Python's time and not the GPU's."""
    return FAMILIES[cell.family].suite == "bridge"


def check(cell: Cell, out, reference) -> float:
    """The relative error of `out`; raises ArithmeticError above the family's limit."""
    from benchmarks.operands import rel_err

    error, limit = rel_err(out, reference), FAMILIES[cell.family].max_rel_err
    if not error <= limit:
        raise ArithmeticError(f"relative error {error:.3g} is over {limit:g}")
    return error


def _call_time(cell: Cell, calls: Sequence[timing.Call]) -> float:
    """Microseconds a call, one for each copy of the weights; with many rows four copies will do."""
    return timing.graph_time(calls if cell.m < 1024 else calls[:4])


def measure(
    cell: Cell,
    weights,
    compiled: Future | None,
    device: str,
    sources: Collection[str],
    verify: bool,
    eligible: bool = False,
    sweep: Executor | None = None,
) -> dict:
    """The record of a cell.

    Args:
      weights: what `operands.make_weights` gave for this family, N, K and group, or None.
      compiled: the future of `ours.compiled(cell)`; None for host times.
      device: name of the card, for its ceilings.
      sources: which peers to run ("torch", "vllm", ...).
      verify: whether results are compared with the reference.
      eligible: leave out the peers that are shown and never counted.
      sweep: threads that compile every config there is, to find this cell's own best.
    """
    if is_host(cell):
        return _measure_host(cell, device, verify)
    from benchmarks import operands as ops
    from benchmarks import peers as peer_table

    o = ops.make_operands(cell, weights)
    times, others, failed = {}, {}, {}
    kernel = config = ""
    us = err = None
    try:
        made, function = compiled.result()
        kernel, config = made.kernel, made.config
        arguments = made.operands(o)
        out = made.finish(function(*arguments[0]), o)
        err = check(cell, out[o.rows], o.reference) if verify else None
        calls = [lambda a=a: function(*a) for a in arguments]
        us = _call_time(cell, calls)
    except Exception as error:
        failed["ours"] = reason(error)
    for peer in peer_table.peers_of(cell.family):
        if peer.source not in sources or (eligible and not peer.eligible):
            continue
        try:
            built = peer.build(o)
            out = built.finish(built.calls[0]())
            if verify and built.reference:
                check(cell, out, built.reference())
            elif verify:
                check(cell, out[o.rows], o.reference)
            t = built.time() if built.time else _call_time(cell, built.calls)
            (times if peer.eligible else others)[peer.name] = t
        except Exception as error:
            failed[peer.name] = reason(error)
    record = report.make_record(
        cell, kernel=kernel, config=config, us=us, peers=times, others=others, rel_err=err,
        failed=failed, ceilings=CEILINGS.get(device),
    )  # fmt: skip
    if sweep is not None and us is not None:
        record |= _best_config(cell, o, made.configs(), sweep)
    return record


def _best_config(cell: Cell, o, configs, pool: Executor) -> dict:
    """The fastest of all configs: what the chosen one is measured against on unseen shapes."""
    from benchmarks import ours

    futures = {config: pool.submit(ours.compiled, cell, config) for config in configs}
    wait(futures.values())
    times = {}
    for config, future in futures.items():
        try:
            made, function = future.result()
            arguments = made.operands(o)
            check(cell, made.finish(function(*arguments[0]), o)[o.rows], o.reference)
            calls = [lambda f=function, a=a: f(*a) for a in arguments]
            times[config] = _call_time(cell, calls)
        except Exception:  # a config that is no good is no candidate
            continue
    if not times:
        return {}
    best = min(times, key=times.get)
    return {"best_config": str(best), "best_us": round(times[best], 3), "configs": len(times)}


def _measure_host(cell: Cell, device: str, verify: bool) -> dict:
    from benchmarks.bridge import host_case

    times, others, failed = {}, {}, {}
    kernel, us, err = "", None, None
    try:
        case = host_case(cell)
        kernel = case.kernel
        err = check(cell, case.ours(), case.reference()) if verify else None
        us = timing.host_time(case.ours)
        for builders, kept in ((case.peers, times), (case.others, others)):
            for name, build in builders.items():
                try:
                    kept[name] = timing.host_time(build())
                except Exception as error:
                    failed[name] = reason(error)
    except Exception as error:
        failed["ours"] = reason(error)
    return report.make_record(
        cell, kernel=kernel, us=us, peers=times, others=others, rel_err=err, failed=failed,
        ceilings=CEILINGS.get(device),
    )  # fmt: skip
