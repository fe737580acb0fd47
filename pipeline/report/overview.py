"""The first screen of a report: the verdict, what it is about, and numbers beside others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.economics.cost import money
from pipeline.report.blocks import Tile
from pipeline.report.prices import price_of
from pipeline.report.serving import measured_on, speed_at
from pipeline.report.siblings import as_point, quantized
from pipeline.report.words import between, percent
from pipeline.tables import number, size, streams
from pipeline.verdict.closing import best_measurement


def reasons(report: Mapping[str, Any]) -> list[str]:
    """Lists what speaks against the build, without what the headline says already."""
    verdict = report["verdict"]
    headline = verdict["headline"].casefold()
    return [text for text in verdict["reasons"] if text.rstrip(".").casefold() not in headline]


def about(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lists what the page is about: model, format, engine, machine and date, each with a name."""
    rows = []
    if model := report["model"]:
        shown = f"{model['source']}: {model['architecture']}, {model['parameters']:,} parameters"
        rows.append(("model", shown))
    checkpoint, engine = report["checkpoint"], report["engine"]
    name = report["recipe"]["quantize"]["format"]
    algorithm = ""
    if checkpoint:
        algorithm = checkpoint["quant_algo"] if quantized(checkpoint) else "not quantized"
    rows.append(("format", f"{name} ({algorithm})" if algorithm else name))
    if engine:
        where = "compiled elsewhere" if engine.get("adopted") else "compiled"
        rows.append(("engine", f"{where} for {engine['target']}"))
    if machine := measured_on(report):
        rows.append(("measured on", machine))
    return [*rows, ("built", f"{report['created'][:10]} by trtllm-pipeline {report['version']}")]


def tiles(report: Mapping[str, Any]) -> list[Tile]:
    """Lists the numbers of the first screen, beside those of the source or of 16 bit."""
    return [*_written(report), *_served(report)]


def _written(report: Mapping[str, Any]) -> Iterator[Tile]:
    """Size and quality of the checkpoint."""
    if report["checkpoint"]:
        sizes = report["size"]
        share = percent(sizes["share"], 0)
        yield Tile(
            "checkpoint",
            size(sizes["checkpoint_bytes"]),
            f"{share} of 16 bit",
            size(sizes["bytes_16bit"]),
        )
    if quality := report["quality"]:
        for label, name in (("perplexity", "perplexity"), ("bits per byte", "bits_per_byte")):
            measured = quality[name]
            yield Tile(
                label,
                number(measured["value"]),
                between(measured),
                number(quality[f"source_{name}"]),
                whose="source",
            )
        agreement = quality["top1_agreement"]
        yield Tile(
            "agreement with the source",
            percent(agreement["value"]),
            between(agreement, percent),
            # The source agrees with itself; nobody measured that.
            "",
        )


def _served(report: Mapping[str, Any]) -> Iterator[Tile]:
    """Speed, price and memory of the engine, beside those of a build in 16 bit."""
    load = report["load"]
    if load is None:
        return
    best, plain = best_measurement(load), _other_in_16_bit(report)
    level, speed = best["concurrency"], best["tokens_per_second"]
    # What was not measured has no number; a build that is not there has none to show.
    beside = speed_at(plain, level) if plain else None
    unknown = "no build to compare"
    if as_point(report)["sixteen_bit"]:
        unknown = "this build"
    yield Tile(
        f"tokens/s, {streams(level)}",
        number(speed["value"]),
        between(speed),
        number(beside["value"]) if beside else unknown,
    )
    if cost := report["cost"]:
        amount = cost["per_million_tokens"]
        other = beside and price_of(beside, cost["price_per_hour"], cost["utilization"])
        yield Tile(
            f"{cost['currency']} per million tokens",
            _amount(amount),
            between(amount, money),
            _amount(other) if other else unknown,
        )
    if load["memory_bytes"]:
        memory = plain and plain["memory_bytes"]
        yield Tile(
            "memory of the server",
            size(load["memory_bytes"]),
            "",
            size(memory) if memory else unknown,
        )


def _other_in_16_bit(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Another build of the model in 16 bit, one whose speed can be compared if there is one."""
    if as_point(report)["sixteen_bit"]:
        return None
    found = [row for row in report["siblings"] if row["sixteen_bit"]]
    return next((row for row in found if row["speed"]), found[0] if found else None)


def _amount(price: Mapping[str, float | None]) -> str:
    return "-" if price["value"] is None else money(price["value"])
