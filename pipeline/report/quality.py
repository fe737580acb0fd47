"""The sections of a report on quality: what quantization cost, and what compiling cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from statistics import median
from typing import Any

from pipeline.report.blocks import (
    Block,
    Cell,
    Figure,
    Figures,
    Pair,
    Paragraph,
    Section,
    Table,
    Text,
)
from pipeline.report.charts import Bar, bars, histogram, interval
from pipeline.report.words import estimate, percent
from pipeline.tables import count, number
from pipeline.verdict.decision import TONES
from pipeline.verdict.estimate import Estimate
from pipeline.verdict.gates import beyond_range
from pipeline.verdict.words import MEASURES, Measure, measured_words, nats, signed_percent

WORST_LINEARS = 10
WORST_DOCUMENTS = 3
COMPLETIONS = 2
# So many words in a row are no chance.
_SHARED = 3
# How many characters of a document are kept.
_BEGINS = 80


def gates_section(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields what every gate measured, against its limit."""
    if not report["gates"]:
        return
    rows = []
    for gate in report["gates"]:
        kind, measure = TONES[gate["verdict"]], MEASURES.get(gate["name"])
        drawn = interval(gate["low"], gate["measured"], gate["high"], gate["limit"], kind)
        rows.append(
            (
                f"{gate['subject']}: {_name(gate['name'], measure)}{_of_task(gate)}",
                Cell(_measured(gate, measure), chart=drawn),
                _limit(gate["limit"], measure),
                Cell(gate["verdict"], kind, note=_beyond_numbers(gate)),
            )
        )
    columns = ("gate", "measured", "limit", "verdict")
    note = (
        "In brackets, and as a bar beside the line that is the limit: where the number lies with "
        "95 % confidence."
    )
    yield Section("Gates", (Table(columns, rows, frozenset({2})), Paragraph(note, "soft")))


def completions_section(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields what the source and the checkpoint write, side by side."""
    written = (report["quality"] or {}).get("completions") or []
    if not written:
        return
    pairs = [_pair(one, report["checkpoint"]["format"]) for one in written[:COMPLETIONS]]
    note = "What each writes on its own, always the likeliest token. What differs is marked."
    yield Section("In their own words", (Paragraph(note), *pairs))


def quality_sections(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields the checkpoint against the source, and the engine against both."""
    quality, fidelity = report["quality"], report["fidelity"]
    if quality:
        yield Section("Checkpoint against source", tuple(_checkpoint(quality)))
        yield from _linears(quality["signal_to_noise"])
    if fidelity:
        yield Section("Engine against checkpoint", tuple(_engine(fidelity)))


def _beyond_numbers(gate: Mapping[str, Any]) -> str:
    """What the evidence says that the other cells of its row do not."""
    evidence = str(gate["evidence"])
    if gate["name"] in MEASURES:
        ends = Estimate(gate["measured"], gate["low"], gate["high"])
        said = measured_words(gate["name"], gate["subject"], ends, gate["limit"])
        if _of_task(gate):
            evidence = evidence.partition(": ")[2]
        evidence = evidence.replace(said, "")
        evidence = evidence.strip(" ;:,")
    return evidence


def _of_task(gate: Mapping[str, Any]) -> str:
    """Which task a gate is about, behind its name; empty for what is not about one."""
    task, colon, _ = str(gate["evidence"]).partition(": ")
    return f", {task}" if gate["name"].endswith("accuracy_loss") and colon else ""


def _name(name: str, measure: Measure | None) -> str:
    if measure is None:
        return name.replace("_", " ")
    return f"{measure.label} {measure.against}".strip()


def _measured(gate: Mapping[str, Any], measure: Measure | None) -> str:
    """The number; a dash where the gate is not about one, as with an empty text."""
    if gate["measured"] is None and gate["limit"] is None:
        return "-"
    ends = {"value": gate["measured"], "low": gate["low"], "high": gate["high"]}
    return estimate(ends, measure.show if measure else number)


def _limit(limit: float | None, measure: Measure | None) -> str:
    if limit is None:
        return "-"
    if measure is None:
        return number(limit)
    return f"at {'least' if measure.least else 'most'} {measure.show_limit(limit)}"


def _pair(one: Mapping[str, Any], name: str) -> Pair:
    source, written = str(one["source"]), str(one["written"])
    if source == written:
        caption = f"the same, all {count(one['tokens'], 'token')}"
    else:
        caption = f"the same for the first {one['same_tokens']} of {count(one['tokens'], 'token')}"
    own, other = differences(source, written)
    return Pair(str(one["prompt"]), (Text("source", own), Text(name, other)), caption)


def differences(one: str, other: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Finds the words that two texts do not share, in their order.

    Args:
        one: A text.
        other: Another.

    Returns:
        Both in pieces, each with whether it is not in the other text. A word or two that are the
        same by chance, in the midst of others, count as differing.
    """
    words = [re.findall(r"\S+\s*", text) for text in (one, other)]
    stripped = [[word.strip() for word in text] for text in words]
    matches = SequenceMatcher(a=stripped[0], b=stripped[1], autojunk=False)
    pieces: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    done = [0, 0]
    for *starts, length in matches.get_matching_blocks():
        # The last block is empty and stands at both ends.
        if 0 < length < _SHARED and any(starts):
            continue
        for text, piece, start, side in zip(words, pieces, starts, (0, 1), strict=True):
            if start > done[side]:
                piece.append(("".join(text[done[side] : start]), True))
            if length:
                piece.append(("".join(text[start : start + length]), False))
            done[side] = start + length
    return pieces


def _checkpoint(quality: Mapping[str, Any]) -> Iterator[Block]:
    yield Paragraph(
        "What quantization cost. The written files were read back and compared with the source "
        f"model on {count(quality['tokens'], 'token')} of "
        f"{count(quality['documents'], 'held-out document')}."
    )
    source = quality["source_perplexity"], quality["source_bits_per_byte"]
    activations = quality["activations"]
    rows = [
        ("perplexity", estimate(quality["perplexity"]), number(source[0])),
        ("bits per byte", estimate(quality["bits_per_byte"]), number(source[1])),
        (
            "perplexity increase",
            estimate(quality["perplexity_increase"], signed_percent),
            "",
        ),
        ("KL divergence, nats per token", estimate(quality["kl_divergence"], nats), ""),
        ("KL divergence, 99th percentile", estimate(quality["kl_divergence_p99"], nats), ""),
        ("agreement: same likeliest token", estimate(quality["top1_agreement"], percent), ""),
        (
            f"largest activation, of {number(activations['limit'])} in {activations['dtype']}",
            number(activations["largest"]),
            "",
        ),
    ]
    yield Table(("measure", "this checkpoint", "source"), rows, frozenset({1, 2}))
    if warning := beyond_range(activations):
        yield Paragraph(f"Warning: {warning}.", "bad")
    yield from _tasks(quality["tasks"], "this checkpoint")
    yield from _documents(quality["by_document"])


def _tasks(tasks: Sequence[Mapping[str, Any]], subject: str) -> Iterator[Block]:
    if not tasks:
        return
    rows = [
        (
            f"{task['name']} ({task['layout']}, {count(task['rows'], 'row')})",
            estimate(task["accuracy"], lambda value: percent(value, 1)),
            percent(task["source_accuracy"], 1),
            estimate(task["accuracy_change"], _points),
            percent(task["chance"], 1),
        )
        for task in tasks
    ]
    columns = ("multiple choice", subject, "source", "change", "by chance")
    yield Table(columns, rows, frozenset({1, 2, 3, 4}))


def _points(value: float) -> str:
    """A difference of two shares."""
    shown = f"{value * 100:+.1f}"
    return f"{shown.lstrip('+-') if float(shown) == 0 else shown} points"


def _documents(documents: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """Where the difference is; nothing where there is none."""
    per_token = [(row["kl"] / row["tokens"], row) for row in documents if row["kl"] is not None]
    shown = [(kl, row) for kl, row in per_token if kl > 0]
    chart = histogram([kl for kl, _ in shown], unit="nats", counted="documents")
    if not chart:
        return
    yield Figures(
        (
            Figure(
                chart,
                "Which documents suffer: mean KL divergence from the source per token, one per "
                "document, on a logarithmic axis.",
            ),
        )
    )
    worst = sorted(shown, key=lambda pair: -pair[0])[:WORST_DOCUMENTS]
    rows = [
        (_first_words(str(row["begins"])), number(kl, 3), number(row["tokens"]))
        for kl, row in worst
    ]
    columns = ("suffers most: the document that begins", "KL divergence, nats/token", "tokens")
    yield Table(columns, rows, frozenset({1, 2}))


def _first_words(text: str) -> str:
    begins = " ".join(text.split()) or "(only white space)"
    return f"{begins} …" if len(text) >= _BEGINS else begins


def _linears(linears: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    """Signal to noise; left out where no linear differs from the source's."""
    known = [row for row in linears if row["db"] is not None]
    if not known:
        return
    worst = known[:WORST_LINEARS]
    middle = median(row["db"] for row in known)
    drawn = [Bar(row["linear"], row["db"], f"{number(row['db'], 3)} dB") for row in worst]
    drawn.append(Bar("median of all", middle, f"{number(middle, 3)} dB", faint=True))
    # In two columns, of one scale, where there is room.
    half, longest = (len(drawn) + 1) // 2, max(bar.value or 0.0 for bar in drawn)
    columns = [drawn[:half], drawn[half:]] if len(drawn) > half else [drawn]
    figures = tuple(Figure(bars(column, longest=longest), "") for column in columns)
    said = (
        f"The source linear's output over the error of the written one, on the source's own "
        f"inputs, of {count(len(known), 'linear')}; 10 dB more is a tenth of the noise. "
        f"The {'worst ' + str(len(worst)) + ' are' if len(worst) > 1 else 'only one is'} named; "
        f"the median is {number(middle, 3)} dB, the best {number(known[-1]['db'], 3)} dB."
    )
    rows = [(Cell(row["linear"], code=True), f"{number(row['db'], 3)}") for row in worst]
    table = Table(("linear", "dB"), rows, frozenset({1}), markdown_only=True)
    yield Section("Signal to noise", (Paragraph(said), Figures(figures), table))


def _engine(fidelity: Mapping[str, Any]) -> Iterator[Block]:
    against = fidelity["against_checkpoint"]
    yield Paragraph(
        "What compiling cost. The engine that is served was compared with the checkpoint it was "
        f"made of, on {count(fidelity['tokens'], 'token')}. What is lost here is lost by the "
        "compiler or by how the engine computes, not by quantization; the last column is both "
        "together."
    )

    rows = [
        (
            "perplexity increase",
            estimate(against["perplexity_increase"], signed_percent),
            estimate(fidelity["perplexity_increase"], signed_percent),
        ),
        (
            "KL divergence, nats per token",
            estimate(against["kl_divergence"], nats),
            estimate(fidelity["kl_divergence"], nats),
        ),
        ("KL divergence, 99th percentile", estimate(against["kl_divergence_p99"], nats), "-"),
        (
            "agreement: same likeliest token",
            estimate(against["top1_agreement"], percent),
            estimate(fidelity["top1_agreement"], percent),
        ),
    ]
    # A measure that this kind of engine cannot be asked for has no row.
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    columns = ("measure", "engine against checkpoint", "engine against source")
    yield Table(columns, rows, frozenset({1, 2}))
    yield Paragraph(f"Perplexity of the engine: {estimate(fidelity['perplexity'])}.")
    yield Paragraph(f"How it was measured: {fidelity['method']}.", "soft")
    yield from _tasks(fidelity["tasks"], "this engine")
