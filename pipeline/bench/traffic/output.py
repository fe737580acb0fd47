"""Tables of a load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.bench.intervals import estimate_text, interval_text
from pipeline.tables import count, number, print_table, streams

_TIMES = {
    "ttft_ms": "first token",
    "itl_ms": "per token",
    "gap_ms": "longest gap",
    "latency_ms": "request",
}
_RATIOS = {"tokens_per_second": "tokens/s", **_TIMES, "goodput": "goodput"}
_PEER = {
    "requests_per_second": "requests/s",
    "ttft_p50_ms": "first token, p50 ms",
    "latency_p50_ms": "request, p50 ms",
}


def print_load(results: Mapping[str, Any]) -> None:
    """Prints what :func:`~pipeline.bench.traffic.measure.measure_load` returned."""
    rows = _rows(results)
    if "baseline" in results:
        others = [name for name in results["servers"] if name != results["baseline"]]
        print(f"{', '.join(others)} against {results['baseline']} (baseline)\n")
    _print_rates(results, rows)
    _print_times(rows)
    _print_ratios(rows)
    _print_peer(results)


def remark_lines(results: Mapping[str, Any]) -> list[str]:
    """Returns what has to be said about the numbers, a line each.

    Args:
        results: As of :func:`print_load`.
    """
    return [f"{load}: {remark}" for load, row in _rows(results) for remark in row["remarks"]]


def _rows(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The measurements, each with what its lines are called: names of servers may be long."""
    servers = results.get("servers") or {"": results}
    baseline = results.get("baseline")
    return [
        (f"{_load(row)}, baseline" if name == baseline else _load(row), row)
        for name, found in servers.items()
        for row in found["measurements"]
    ]


def _load(row: Mapping[str, Any]) -> str:
    if row["load"] == "closed":
        return streams(row["concurrency"])
    rate = f"{number(row['rate'], 3)}/s"
    return rate if row["load"] == "open" else f"trace, {rate}"


def _print_rates(results: Mapping[str, Any], rows: Sequence[tuple[str, Any]]) -> None:
    goodput = rows[0][1]["goodput"]
    failed = any(row["failed"] for _, row in rows)
    columns: dict[str, Callable[[str, Any], object]] = {
        "load": lambda load, _: load,
        "requests": lambda _, row: row["requests"],
        **({"failed": lambda _, row: row["failed"]} if failed else {}),
        "requests/s": lambda _, row: number(row["requests_per_second"], 3),
        "tokens/s": lambda _, row: number(row["tokens_per_second"]["value"], 3),
        "95 %": lambda _, row: interval_text(row["tokens_per_second"]),
        "CV": lambda _, row: _percent(row["coefficient_of_variation"]),
    }
    notes = "95 % and CV, the coefficient of variation: of tokens/s over "
    notes += count(results["rounds"], "round")
    if goodput:
        columns["good/s"] = lambda _, row: number(row["goodput"]["requests_per_second"], 3)
        columns["good"] = lambda _, row: _percent(row["goodput"]["share"])
        limits = " and ".join(f"{name} {ms:g} ms" for name, ms in goodput["objectives_ms"].items())
        notes += f"; good: requests within {limits}"
    clients = results["clients"]
    print_table(
        list(columns),
        [[cell(load, row) for cell in columns.values()] for load, row in rows],
        title=f"{results['model']}, tokens in: {results['input_tokens']}, out: "
        f"{results['output_tokens']}; {clients} client process{'es' * (clients != 1)}",
        caption=notes,
        right=[place for place, name in enumerate(columns) if name not in ("load", "95 %")],
        whole=[place for place, name in enumerate(columns) if name not in ("load", "95 %")],
    )


def _percent(share: float | None) -> str:
    return number(None) if share is None else f"{share:.1%}"


def _print_times(rows: Sequence[tuple[str, Any]]) -> None:
    told = [
        [
            "" if place else load,
            title,
            number(row[name]["p50"], 3),
            interval_text(row["p50_over_rounds"][name]),
            *(number(row[name][key], 3) for key in ("p90", "p99", "max")),
        ]
        for load, row in rows
        for place, (name, title) in enumerate(
            (name, title) for name, title in _TIMES.items() if row[name] is not None
        )
    ]
    planned = rows[0][1]["load"] != "closed"
    print()
    print_table(
        ["load", "ms", "p50", "95 % of it", "p90", "p99", "max"],
        told,
        caption=f"times count from {'the planned arrival' if planned else 'sending'}; per token: a "
        "stream's average after its first; longest gap: between two arrivals of one stream",
        right=(2, 4, 5, 6),
        whole=(1, 2, 4, 5, 6),
    )


def _print_ratios(rows: Sequence[tuple[str, Any]]) -> None:
    compared = [(load, row["ratios"]) for load, row in rows if "ratios" in row]
    if not compared:
        return
    print()
    print_table(
        ["load", "measure", "ratio", "95 %"],
        [
            [load if not place else "", title, number(ratio["value"], 3), interval_text(ratio)]
            for load, ratios in compared
            for place, (title, ratio) in enumerate(
                (title, ratios[name]) for name, title in _RATIOS.items() if ratios.get(name)
            )
        ],
        title="over the baseline, in pairs of one round",
        caption="times: medians of a round; below 1 is faster. tokens/s and goodput: above 1 is "
        "faster",
        right=(2,),
        whole=(1, 2),
    )


def _print_peer(results: Mapping[str, Any]) -> None:
    rows = results.get("perf_analyzer")
    if not rows:
        return
    print()
    print_table(
        ["load", "measure", "bench", "perf_analyzer", "ratio"],
        [
            [
                streams(row["concurrency"]) if not place else "",
                title,
                estimate_text(row[name]["own"]),
                estimate_text(row[name]["perf_analyzer"]),
                estimate_text(row[name]["ratio"]),
            ]
            for row in rows
            for place, (name, title) in enumerate(_PEER.items())
        ],
        title="the same load by perf_analyzer, in the same rounds",
        caption="in brackets 95 % intervals over the rounds",
    )
