"""What ``compare`` left beside a build: it counts for this build, and for no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.economics.capacity.answer import beside
from pipeline.economics.interleaved import COMPARISON, beside_16_bit
from tests.unit.ladder.support import est, level, report


def rung(name: str, format_name: str, bits: int, bytes_: int, load: list[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "format": format_name,
        "weight_bits": bits,
        "checkpoint_bytes": bytes_,
        "perplexity": report(name, format_name)["quality"]["perplexity"],
        "load": load,
    }


def compared(folder: Path, **changes: Any) -> Path:
    own = level(8, 2000.0) | {"ratio": est(1.25, 1.2, 1.3)}
    document = {
        "load": {"created": "2026-05-02T10:00:00Z"},
        "baseline": "m-float16",
        "rungs": [
            rung("m-float16", "float16", 16, 7_400_000, [level(8, 1600.0) | {"ratio": None}]),
            rung("m-int4_awq", "int4_awq", 4, 2_775_000, [own]),
        ],
        **changes,
    }
    (folder / COMPARISON).write_text(json.dumps(document))
    return folder


def test_prices_beside_16_bit_are_of_the_same_run(tmp_path: Path) -> None:
    found = beside_16_bit(compared(tmp_path), report("m", "int4_awq"))
    assert found is not None
    assert (found["created"], found["baseline"]) == ("2026-05-02T10:00:00Z", "float16")
    priced = beside(found, 3.6, 0.5)
    assert priced is not None
    (row,) = priced["levels"]
    assert (row["concurrency"], row["ratio"]["value"]) == (8, 1.25)
    # 3.60 an hour is a thousandth a second; half of 2,000 and of 1,600 tokens for it.
    assert row["per_million_tokens"] == pytest.approx(1.0)
    assert row["baseline_per_million_tokens"] == pytest.approx(1.25)
    unpriced = beside(found, None, 0.5)
    assert unpriced is not None
    assert unpriced["levels"][0]["per_million_tokens"] is None


def test_another_build_has_nothing_of_it(tmp_path: Path) -> None:
    folder = compared(tmp_path)
    assert beside_16_bit(folder, report("m", "int8_sq")) is None
    # The build was made anew since: other files, another quality.
    anew = report("m", "int4_awq", perplexity=est(1.4, 1.39, 1.41))
    assert beside_16_bit(folder, anew) is None
    # 16 bit itself is beside nothing.
    own = report("m", "float16")
    own["size"]["checkpoint_bytes"] = 7_400_000
    assert beside_16_bit(folder, own) is None
    assert beside_16_bit(tmp_path / "empty", report("m", "int4_awq")) is None


@pytest.mark.parametrize("changes", [{"load": None}, {"rungs": 3}, {"baseline": "m-int4_awq"}])
def test_a_file_that_was_changed_compares_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    assert beside_16_bit(compared(tmp_path, **changes), report("m", "int4_awq")) is None
    (tmp_path / COMPARISON).write_text("{")
    assert beside_16_bit(tmp_path, report("m", "int4_awq")) is None
