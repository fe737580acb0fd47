"""The dashboard against the types that Grafana publishes of it, by TypeScript's compiler."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.monitoring.grafana import dashboard
from pipeline.monitoring.observed import Observed

from ...conftest import PROJECT

MODULES = PROJECT / "build" / "operate" / "node" / "node_modules"
"""Where make watch-proof puts them."""
TYPES = MODULES / "@grafana" / "schema" / "dist" / "types" / "raw"

# JSON has an enumeration's values and not its names.
PLAIN = """
type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends Array<infer U> ? Array<Plain<U>>
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
"""


def complaints(made: dict[str, Any], folder: Path) -> str:
    """What the compiler says of a dashboard, its panels' options and how its lines are drawn."""
    node = shutil.which("node")
    if node is None or not TYPES.is_dir():
        pytest.skip("Grafana's types or node are not here; make watch-proof fetches the types")
    made = json.loads(json.dumps(made))
    # What a data source adds to an annotation is in no type of the dashboard's.
    for mark in made["annotations"]["list"]:
        del mark["expr"], mark["titleFormat"]
    values = [("dashboard", "dashboard/x/types.gen", "Dashboard", made)]
    for kind in ("timeseries", "stat", "text"):
        of = [panel for panel in made["panels"] if panel["type"] == kind]
        place = f"composable/{kind}/panelcfg/x/types.gen"
        values += [(f"{kind}{n}", place, "Options", panel["options"]) for n, panel in enumerate(of)]
        if kind == "timeseries":
            drawn = [panel["fieldConfig"]["defaults"]["custom"] for panel in of]
            values += [(f"drawn{n}", place, "FieldConfig", one) for n, one in enumerate(drawn)]
    lines = [
        f"export const {name}: Plain<import('{TYPES}/{place}').{type_}> = {json.dumps(value)};"
        for name, place, type_, value in values
    ]
    file = folder / "dashboard.ts"
    file.write_text(PLAIN + "\n".join(lines) + "\n", encoding="utf-8")
    compiler = MODULES / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [node, str(compiler), "--noEmit", "--strict", "--skipLibCheck", "--module", "esnext",
         "--moduleResolution", "bundler", "--target", "es2022", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("which", ["cpu", "gpu"])
def test_grafanas_types_take_the_dashboard(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    assert complaints(dashboard(request.getfixturevalue(which)), tmp_path) == ""


def test_they_would_not_take_a_wrong_one(cpu: Observed, tmp_path: Path) -> None:
    made = dashboard(cpu)
    lines = next(panel for panel in made["panels"] if panel["type"] == "timeseries")
    lines["fieldConfig"]["defaults"]["thresholds"]["mode"] = "absolut"
    lines["fieldConfig"]["defaults"]["custom"]["thresholdStyle"] = {"mode": "line"}
    lines["options"]["legend"]["placement"] = "below"
    made["schemaVersion"] = "42"
    said = complaints(made, tmp_path)
    for wrong in ('"absolut"', "thresholdStyle", '"below"', "'string' is not assignable to"):
        assert wrong in said, said
