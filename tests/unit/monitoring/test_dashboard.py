"""The dashboard's JSON: what Grafana's own types cannot tell (make watch-proof asks those)."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.monitoring.grafana import dashboard, write
from pipeline.monitoring.observed import Observed
from pipeline.monitoring.queries import Source

ROWS = [
    "Traffic",
    "Latency",
    "Batching and queue",
    "KV cache",
    "Memory",
    "Errors and restarts",
    "Build",
    "Cost",
    "Replicas",
]


def panels(observed: Observed, kind: str | None = None) -> Iterator[dict[str, Any]]:
    for panel in dashboard(observed)["panels"]:
        if kind is None or panel["type"] == kind:
            yield panel


def test_it_has_its_rows_and_a_price_where_one_is_known(cpu: Observed, gpu: Observed) -> None:
    assert [row["title"] for row in panels(cpu, "row")] == ROWS
    # The recipe of the sample has no price, and nobody gave one.
    assert [row["title"] for row in panels(gpu, "row")] == [row for row in ROWS if row != "Cost"]
    variables = {one["name"]: one for one in dashboard(cpu)["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "model", "pod", "price"]
    assert variables["price"]["query"] == "1.5"
    assert "EUR" in variables["price"]["label"]


@pytest.mark.parametrize("which", ["cpu", "gpu"])
def test_panels_lie_beside_each_other_and_use_what_is_declared(
    which: str, request: pytest.FixtureRequest
) -> None:
    observed: Observed = request.getfixturevalue(which)
    made = dashboard(observed)
    ids = [panel["id"] for panel in made["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells
    declared = {one["name"] for one in made["templating"]["list"]} | {"__rate_interval", "__all"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(made)))
    assert used <= declared
    assert {"datasource", "namespace", "pod", "model", "__rate_interval"} <= used


def test_each_panel_says_who_has_it_and_where_its_limit_comes_from(cpu: Observed) -> None:
    drawn = 0
    for panel in panels(cpu):
        if panel["type"] in ("row", "text"):
            continue
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters)) > 0
        assert any(source.value in panel["description"] for source in Source), panel["title"]
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        if len(steps) > 1:
            drawn += 1
            assert "The line is at" in panel["description"]
            figure = "max_batch_size 32" if panel["title"] in ("Batch", "Use") else "8 streams"
            assert figure in panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"]["mode"] == "line"
    assert drawn == 9
    known = {panel["title"]: panel for panel in panels(cpu)}
    waiting = known["Requests waiting"]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["value"] for step in waiting] == [None, 4]
    left = known["Blocks that are left"]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["color"] for step in left] == ["red", "green"]


def test_one_file_that_is_json(cpu: Observed) -> None:
    ((name, text),) = write(cpu.deployed).items()
    assert name == "story.json"
    assert json.loads(text) == dashboard(cpu)
