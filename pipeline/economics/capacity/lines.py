"""The tables of ``capacity``, and the sentences around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.economics.cost import money
from pipeline.tables import number, print_table, streams

SIMULATION = "a simulation, not a measurement"
_UNEVEN = 1.3


def print_capacity(document: Mapping[str, Any]) -> None:
    """Prints the tables of what :func:`~pipeline.economics.capacity.answer.capacity` returned."""
    percent = f"p{document['objective']['percentile']:g}"
    _print_measured(document["measured"], percent)
    print()
    _print_checks(document["measured"], percent)
    print()
    _print_simulated(document, percent)
    if document.get("sixteen_bit"):
        print()
        _print_sixteen(document["sixteen_bit"], document["cost"])


def heading(document: Mapping[str, Any]) -> str:
    """Says in a sentence what was asked."""
    traffic, objective = document["traffic"], document["objective"]
    kind = "as the trace comes" if traffic["arrivals"] == "trace" else "coming at random"
    return (
        f"{document['name']}: {number(float(traffic['requests_per_second']), 3)} requests/s "
        f"{kind}, {number(float(traffic['input_tokens']), 3)} tokens in and "
        f"{number(float(traffic['output_tokens']), 3)} out "
        f"({number(float(traffic['tokens_per_second']), 3)} tokens/s); "
        f"{objective['percentile']:g} % of them with the first token in "
        f"{objective['time_to_first_token_ms']:g} ms, and as many with "
        f"{objective['inter_token_ms']:g} ms for each token after it."
    )


def sentences(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the numbers come from, and what has to be said of them."""
    source, fit = document["source"], document["fit"]
    where = (
        f"the samples in {source['path']}"
        if source["kind"] == "samples"
        else f"the bench stage of the run of {source['created'][:10]}, which does not keep when a "
        "request was sent: it is taken to be when a stream was free. --samples is closer"
    )
    yield f"Measured: one server, {where}."
    held = (
        "in rounds that were not fitted to" if fit["held_out"] else "in the rounds it was fitted to"
    )
    yield (
        f"Simulated: {SIMULATION}. A step takes {_ms(fit['step_ms'])}, "
        f"{_ms(fit['sequence_ms'])} more for each sequence, {_ms(fit['prompt_token_ms'])} for each "
        "token of a prompt"
        + (f" and {_ms(fit['request_ms'])} for each request" if fit["request_ms"] else "")
        + f"; half of the streams took within {fit['error'] * 100:.1f} % of that, {held}. In front "
        f"of the engine a request spends {_ms(fit['front_delay_ms'])}, and "
        f"{_ms(fit['front_serial_ms'])} one after the other."
    )
    if fit["pace_p95"] and fit["pace_p95"] > _UNEVEN:
        yield (
            "The machine's pace was uneven: for a twentieth of the time everything took "
            f"{number(fit['pace_p95'], 2)} times as long as usual, or longer. The simulation plays "
            "that again, on each server at other times."
        )
    yield from _extrapolation(document)
    yield from document["remarks"]
    for row in document["simulated"]:
        for one in (row, row.get("baseline")):
            if one and one["replicas"] is None:
                yield (
                    f"No number of servers was found for {one['name']} at "
                    f"{number(float(one['requests_per_second']), 3)} requests/s: {one['why']}."
                )
    if document["cost"] is None:
        yield "No prices: say what a server costs with --price-per-hour, or cost.price_per_hour."


def _extrapolation(document: Mapping[str, Any]) -> Iterator[str]:
    most = max(document["measured"], key=lambda row: float(row["tokens_per_second"]))
    yield (
        f"The most that was measured is {number(float(most['tokens_per_second']), 3)} tokens/s of "
        f"one server ({load_words(most)}), and no row asks more than "
        f"{(1 - document['headroom']) * 100:g} % of that of a server (--headroom). Nobody measured "
        "several servers: they are taken not to disturb each other, and each request to go to the "
        "one with the fewest, at no cost."
    )


def load_words(row: Mapping[str, Any]) -> str:
    """Names a load: ``8 streams``, or ``4/s``."""
    if row["load"] == "closed":
        return streams(row["concurrency"])
    rate = f"{number(float(row['rate']), 3)}/s"
    return rate if row["load"] == "open" else f"trace, {rate}"


def _print_measured(rows: Sequence[Mapping[str, Any]], percent: str) -> None:
    failed = any(row["failed"] for row in rows)
    columns = ["load", "requests/s", "tokens/s", "first, ms", "per token, ms", "good", "good/s"]
    print_table(
        [*columns, *(["failed"] if failed else [])],
        [
            [
                load_words(row),
                number(float(row["requests_per_second"]), 3),
                number(float(row["tokens_per_second"]), 3),
                pair(row, "ttft"),
                pair(row, "itl"),
                _percent(row["good"]),
                number(row["goodput_per_second"], 3),
                *([row["failed"]] if failed else []),
            ]
            for row in rows
        ],
        title="Measured, one server",
        caption=f"times: p50 / {percent}; good: requests that keep both limits",
        right=range(1, 8),
        whole=range(8),
    )


def _print_checks(rows: Sequence[Mapping[str, Any]], percent: str) -> None:
    keys = ("tokens_per_second", "ttft_p50", "ttft", "itl_p50", "itl")
    print_table(
        ["load", "tokens/s", "first p50", percent, "per token p50", percent],
        [
            [load_words(row), *(_ratio(row["simulated_over_measured"][key]) for key in keys)]
            for row in rows
        ],
        title="Simulated over measured, the same loads",
        right=range(1, 6),
        whole=range(6),
    )


def _print_simulated(document: Mapping[str, Any], percent: str) -> None:
    cost, baseline = document["cost"], document["baseline"]
    columns = ["traffic", "req/s", "servers", "load", "first, ms", "per token"]
    columns += ["a day", "a million"] if cost else []
    caption = f"times: p50 / {percent}; load: of the most tokens/s that were measured"
    if cost:
        caption += (
            f"; prices: {cost['currency']} a day and for a million generated tokens, at "
            f"{number(float(cost['price_per_hour']))} an hour for each server, day and night"
        )
    if baseline:
        caption += f"; *: {baseline}"
    print_table(
        columns,
        [
            _simulated(one, f"{row['multiply']:g}x{'*' * (one is not row)}", cost=cost)
            for row in document["simulated"]
            for one in (row, row.get("baseline"))
            if one is not None
        ],
        title=f"Servers that are needed ({SIMULATION})",
        caption=caption,
        right=range(1, 8),
        whole=range(8),
    )
    for row in document["simulated"]:
        if (other := row.get("baseline")) and cost and row["replicas"] and other["replicas"]:
            print(f"{row['multiply']:g}x: {compared(row['per_day'], other['per_day'])} than *")


def compared(own: float, other: float) -> str:
    """Says how much cheaper or dearer something is: ``12 % cheaper``."""
    change = own / other - 1
    if not round(change, 2):
        return "no cheaper and no dearer"
    return f"{abs(change) * 100:.0f} % {'dearer' if change > 0 else 'cheaper'}"


def _simulated(
    one: Mapping[str, Any], traffic: str, *, cost: Mapping[str, Any] | None
) -> list[object]:
    cells: list[object] = [traffic, number(float(one["requests_per_second"]), 3)]
    if one["replicas"] is None:
        return [*cells, "none", *[None] * (5 if cost else 3)]
    cells += [one["replicas"], _percent(one["utilization"]), pair(one, "ttft"), pair(one, "itl")]
    if cost:
        cells += [money(one["per_day"]), money(one["per_million_tokens"])]
    return cells


def _print_sixteen(found: Mapping[str, Any], cost: Mapping[str, Any] | None) -> None:
    columns = ["load", "tokens/s", found["baseline"], "ratio"]
    if cost:
        columns += [f"{cost['currency']} a million", found["baseline"]]
    print_table(
        columns,
        [
            [
                streams(level["concurrency"]),
                number(level["tokens_per_second"]["value"], 3),
                number(level["baseline_tokens_per_second"]["value"], 3),
                _ratio(level["ratio"]["value"]),
                *(
                    [money(level[f"{name}per_million_tokens"]) for name in ("", "baseline_")]
                    if cost
                    else []
                ),
            ]
            for level in found["levels"]
        ],
        title=f"Beside 16 bit, measured in turns on {found['created'][:10]} (compare)",
        caption=f"prices of a server that is busy {found['utilization'] * 100:g} % of the time"
        if cost
        else "",
        right=range(1, 6),
        whole=(0,),
    )


def pair(row: Mapping[str, Any], name: str) -> str:
    """Formats the median and the percentile of a time in milliseconds."""
    return f"{number(row[f'{name}_p50_ms'], 3)} / {number(row[f'{name}_ms'], 3)}"


def _ratio(value: float | None) -> str:
    return number(None) if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return number(None) if share is None else f"{share * 100:.0f} %"


def _ms(value: float) -> str:
    return f"{number(float(value), 3)} ms"
