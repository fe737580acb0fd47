"""What a comparison looks like in each form."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.ladder.claims import with_claims
from pipeline.ladder.climb import as_json
from pipeline.ladder.output import print_comparison
from pipeline.ladder.recommend import recommend
from pipeline.ladder.render import how, render_csv, render_html, render_markdown
from pipeline.ladder.row import row_of, with_cost
from pipeline.ladder.table import estimate, short
from pipeline.recipe.schema import ConstraintsSection

from .support import est, level, report, rung

NAMES = ("float16", "int8_sq", "int4_awq")


def comparison(*formats: str) -> dict[str, Any]:
    rungs = [
        rung("float16", [level(1, 500.0), level(32, 2000.0)], kl_divergence=est(0.0, 0.0, 0.0)),
        rung(
            "int8_sq",
            [
                level(1, 600.0, ratio=est(1.2, 1.1, 1.3), difference=True),
                level(32, 2100.0, ratio=est(1.05, 0.98, 1.12)),
            ],
        ),
        rung(
            "int4_awq",
            [
                level(1, 800.0, ratio=est(1.6, 1.5, 1.7), difference=True),
                level(32, 1500.0, ratio=est(0.75, 0.7, 0.8), difference=True),
            ],
            kl_divergence=est(0.004, 0.003, 0.005),
            verdict={
                "verdict": "REGRESSION",
                "headline": "Top-1 agreement <b>is</b> too low | by far",
                "status": "failed",
                "reasons": [],
            },
        ),
    ]
    rungs += [rung(name, [level(1, 700.0), level(32, 1.0)]) for name in formats]
    rungs = [with_claims(with_cost(one, 1.5, 0.5, 32)) for one in rungs]
    return {
        "schema": 1,
        "name": "tiny",
        "version": "0.1.0",
        "created": "2026-05-01T10:00:00Z",
        "machine": {"processor": "a processor", "cpus": 2},
        "model": "a/model",
        "notes": [],
        "baseline": "t-float16",
        "baseline_format": "float16",
        "load": {
            "machine": {"processor": "a processor", "cpus": 2},
            "rounds": 8,
            "seconds": 30.0,
            "created": "2026-05-01T10:00:00Z",
        },
        "cost": {"currency": "USD", "price_per_hour": 1.5, "utilization": 0.5, "concurrency": 32},
        "constraints": {},
        "rungs": rungs,
        "recommendation": recommend(rungs, ConstraintsSection(), 32, "t-float16"),
    }


@pytest.mark.parametrize(("width", "formats"), [(80, ()), (120, ("fp8", "w4a8_awq", "bfloat16"))])
def test_the_table_fits_the_terminal_and_nothing_is_cut(
    width: int,
    formats: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_comparison(comparison(*formats))
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    row = next(line for line in lines if line.startswith("tokens/s, 32 streams"))
    assert row[22:].split()[:4] == ["2,000", "±60", "2,100", "±63"]
    ratio = lines[lines.index(row) + 1]
    assert re.split(r"\s{2,}", ratio.strip())[:4] == [
        "times float16",
        "1",
        "no difference",
        "0.750 ±0.050",
    ]
    assert re.search(
        r"^KL, nats a token +0 +0\.00110 ±0\.00010 +0\.0040 ±0\.0010", text, re.MULTILINE
    )
    # 1.5 an hour, half of it idle, 2000 tokens/s: 1.5 / 3.6 = 0.41667 a million.
    assert re.search(r"^USD a million tokens +0\.417 ±0\.013", text, re.MULTILINE)


def test_more_formats_than_fit_go_below_with_the_names_of_the_measures_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_comparison(comparison("fp8", "w4a8_awq", "bfloat16"))
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("top-1 agreement")]
    assert len(rows) == 2
    assert sum(len(re.findall(r"95\.00 ±0\.50", row)) for row in rows) == 6


def test_claims_stand_beside_what_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    print_comparison(comparison())
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    claims = [line for line in lines if line[0] == "int4_awq" and "published" in line[-1]]
    # ModelOpt's benchmark.md: 1.33 times at batch 1; here 1.6 times.
    assert ["int4_awq", "speed-up at 1", "1.33x", "1.60x"] in [line[:4] for line in claims]
    assert ["int4_awq", "speed-up at 64", "0.83x", "not measured"] in [line[:4] for line in claims]
    # One point of 40 lost, or one won.
    assert ["int4_awq", "accuracy lost", "5.66 %", "no difference"] in [line[:4] for line in claims]
    # SmoothQuant's README: 5.474 to 5.515.
    assert ["int8_sq", "perplexity", "+0.75 %", "+0.01 %"] in [line[:4] for line in lines]


def test_every_claim_names_its_model_and_source() -> None:
    for one in comparison("fp8")["rungs"]:
        for claim in one["claims"]:
            assert claim["model"]
            assert claim["source"]
            assert claim["setting"]
            assert claim["kind"] in ("published", "folklore")
            assert claim["value"] > 0
    assert comparison()["rungs"][0]["claims"] == []


def test_csv_has_a_line_for_each_format_and_numbers_that_are_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(comparison()))))
    assert [row["format"] for row in rows] == list(NAMES)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in rows[0])
    awq = rows[2]
    assert [float(awq[f"ratio_32{end}"]) for end in ("", "_low", "_high")] == [0.75, 0.7, 0.8]
    assert (awq["difference_32"], rows[1]["difference_32"]) == ("True", "False")
    assert rows[0]["ratio_32"] == ""
    assert float(awq["hellaswag_accuracy_change"]) == -0.01


def test_markdown_has_both_ends_of_an_interval_and_no_broken_row() -> None:
    text = render_markdown(comparison())
    assert "| perplexity | 1.3931 [1.3850, 1.4010] | 1.3931 [1.3850, 1.4010] |" in text
    assert "**Take int8_sq: " in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) - 1 for line in tables}
    assert widths == {4, 6}
    assert r"- int4_awq: REGRESSION: Top-1 agreement <b>is</b> too low \| by far" in text


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_has_the_whole_table() -> None:
    html = render_html(comparison())
    page = Page()
    page.feed(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "b>is"}
    assert not [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "onload")
    ]
    assert "url(" not in html
    assert "Top-1 agreement <b>is</b> too low" in page.text
    for words in (
        "0.750 [0.700, 0.800]",
        "no difference",
        "Take int8_sq",
        "1.33x",
        "USD a million",
    ):
        assert words in page.text, words
    circles = [attributes["class"] for tag, attributes in page.tags if tag == "circle"]
    assert circles == ["other", "marked", "other"]


def test_a_format_is_named_once_before_what_is_wrong_with_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    whole = comparison()
    whole["rungs"][2] |= {"verdict": "INCONCLUSIVE", "headline": "INT4 AWQ: undecided. Agreement"}
    print_comparison(whole)
    assert "\nint4_awq: undecided. Agreement\n" in capsys.readouterr().out
    assert "- int4_awq: undecided. Agreement\n" in render_markdown(whole)
    assert "<li>int4_awq: undecided. Agreement</li>" in render_html(whole)


def test_a_dashed_line_is_explained_where_there_is_one() -> None:
    # int8_sq is the fastest of this table, float16 the closest to the source.
    whole = comparison()
    assert "dashed line" in render_html(whole)
    for one in whole["rungs"]:
        if one["format"] != "float16":
            at = next(level for level in one["load"] if level["concurrency"] == 32)
            at["tokens_per_second"] = est(100.0, 90.0, 110.0)
    assert "dashed line" not in render_html(whole)


def test_json_has_one_object_with_snake_case_keys_and_every_rung_the_same() -> None:
    whole = comparison()
    whole["rungs"].append({**row_of(report("u", "fp8", quality=None, load=None)), "claims": []})
    found = json.loads(as_json(whole))
    assert list(found)[-2:] == ["rungs", "recommendation"]
    assert len({tuple(one) for one in found["rungs"]}) == 1

    def keys(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [*value, *(k for inner in value.values() for k in keys(inner))]
        return [k for inner in value for k in keys(inner)] if isinstance(value, list) else []

    named = {key for key in keys(found) if not key.startswith("t-")}
    assert {key for key in named if not re.fullmatch(r"[a-z][a-z0-9_]*", key)} == set()


def test_what_was_measured_is_told_with_the_numbers() -> None:
    told = how(comparison())
    assert "8 rounds, at least 30 s each" in told
    assert "1.5 USD an hour, asked for tokens 50 % of the time" in told
    assert "(a processor, 2 processor cores)" in told
    without = {**comparison(), "cost": None}
    assert "No cost: give cost.price_per_hour or --price." in how(without)


@pytest.mark.parametrize(
    ("found", "factor", "sign", "text"),
    [
        (est(0.0000052, -0.00025, 0.00025), 100.0, "+", "+0.001 ±0.025"),
        (est(-0.0004, -0.0006, -0.0002), 100.0, "+", "-0.040 ±0.020"),
        (est(382.84, 307.0, 459.0), 1.0, "", "383 ±76"),
        (est(7085.2, 4615.0, 10879.0), 1.0, "", "7,100 ±3,100"),
        (est(1053.7, 740.0, 1503.0), 1.0, "", "1,050 ±380"),
        (est(1.34644, 1.34170, 1.35110), 1.0, "", "1.3464 ±0.0047"),
        (est(0.0, 0.0, 0.0), 100.0, "+", "0"),
        (est(1.0, 1.0, 1.0), 100.0, "", "100.0"),
        # Narrower than is worth writing.
        (est(-8.867e-07, -9.35e-07, -8.39e-07), 100.0, "+", "0.000"),
        (est(12345.6), 1.0, "", "12,346"),
        (est(None), 1.0, "", "-"),
        (None, 1.0, "", "-"),
    ],
)
def test_a_number_has_the_digits_that_its_interval_allows(
    found: dict[str, float | None] | None, factor: float, sign: str, text: str
) -> None:
    decimals = 3 if factor == 100.0 else 6
    written = estimate(found, short, factor=factor, sign=sign, most_decimals=decimals)
    assert written == text


def test_a_loss_of_accuracy_is_a_share_of_the_sources() -> None:
    task = {
        "name": "mmlu",
        "rows": 1000,
        "source_accuracy": 0.6817,
        "accuracy": est(0.6431, 0.62, 0.67),
        "accuracy_change": est(-0.0386, -0.05, -0.02),
    }
    row = with_claims(rung("int4_awq", tasks=[task]))
    (claim, *_) = [one for one in row["claims"] if one["measure"] == "accuracy_loss"]
    # ModelOpt's benchmark says 5.66 % of Llama-3.1-8B-Instruct, which had 68.17.
    assert claim["here"]["value"] == pytest.approx(claim["value"], abs=1e-4)
    assert claim["here"]["low"] == pytest.approx(0.02 / 0.6817)
