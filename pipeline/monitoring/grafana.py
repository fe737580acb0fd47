"""A Grafana dashboard: the queries of the table as panels, with the limits drawn in.

The JSON is Grafana's classic model, which every version since 10 imports; names and values are
those of the dashboard kind in ``@grafana/schema`` 13.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.monitoring.layout import Panel, rows
from pipeline.monitoring.observed import Observed, observe
from pipeline.monitoring.queries import BUILD, COMPONENT, DEPLOYMENT, SERVER

if TYPE_CHECKING:
    from pipeline.manifests.deployed import Deployed

SCHEMA = 42
"""``schemaVersion`` of Grafana 12 and 13; older versions read what they know of it."""
WIDTH, HEIGHT, LOW = 24, 8, 4
"""Of the grid, of a panel with lines, and of one with a number, in Grafana's units."""

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
REFRESH_ON_TIME = 2
"""Asks for a variable's values when the time range changes."""


def write(deployed: Deployed) -> Mapping[str, str]:
    """Writes the dashboard, a :data:`pipeline.manifests.kinds.Writer`.

    Args:
        deployed: What is deployed.

    Raises:
        UnsupportedError: See :func:`pipeline.monitoring.observed.observe`.
        UsageError: See there too.
    """
    observed = observe(deployed)
    text = json.dumps(dashboard(observed), indent=1, ensure_ascii=False)
    return {f"{observed.name}.json": f"{text}\n"}


def dashboard(observed: Observed) -> dict[str, Any]:
    """Returns the dashboard as JSON values.

    Args:
        observed: What is watched.
    """
    load = observed.figures.load
    return {
        "uid": f"trtllm-{observed.name}"[:40],
        "title": f"{observed.name}: TensorRT-LLM on Triton",
        "description": (
            f"Build {observed.digest}. Limits are computed from {load.source}: {load.requests} "
            f"requests at {load.level}, {load.tokens_per_second:.5g} tokens/s."
        ),
        "tags": ["trtllm-pipeline", "triton", "llm"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": list(_variables(observed))},
        "annotations": {"list": [_new_builds(observed)]},
        "links": [],
        "panels": list(_laid_out(observed)),
    }


def _variables(observed: Observed) -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
    }
    of = f'{DEPLOYMENT}="{observed.name}",{COMPONENT}="{SERVER}"'
    family = f"nv_trt_llm_request_metrics{{{of}"
    yield _asked("namespace", "Namespace", f"label_values({family}}}, namespace)")
    yield _asked("model", "Model", f'label_values({family},namespace=~"$namespace"}}, model)')
    yield _asked("pod", "Pod", f'label_values({family},namespace=~"$namespace"}}, pod)')
    if observed.price is not None:
        text = f"{observed.price:g}"
        yield {
            "name": "price",
            "label": f"{observed.currency} an hour and server",
            "type": "textbox",
            "query": text,
            "current": {"text": text, "value": text},
            "hide": 0,
        }


def _asked(name: str, label: str, query: str) -> dict[str, Any]:
    """A variable whose values are those of a label; all of them unless one is chosen."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": REFRESH_ON_TIME,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _new_builds(observed: Observed) -> dict[str, Any]:
    """A mark where servers of a build came that was not there before."""
    up = observed.panels.fill("count by (" + BUILD + ") (up{<server>})")
    return {
        "name": "New build",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "purple",
        "expr": f"{up} unless {up.removesuffix(')')} offset 5m)",
        "titleFormat": f"build {{{{{BUILD}}}}}",
    }


def _laid_out(observed: Observed) -> Iterator[dict[str, Any]]:
    top, number = 0, 1
    for title, panels in rows(observed):
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
            "panels": [],
        }
        number, top, left, tall = number + 1, top + 1, 0, 0
        for panel in panels:
            height = HEIGHT if panel.lines else LOW
            if left + panel.width > WIDTH:
                top, left, tall = top + tall, 0, 0
            place = {"h": height, "w": panel.width, "x": left, "y": top}
            yield {"id": number, "gridPos": place, **_panel(observed, panel)}
            number, left, tall = number + 1, left + panel.width, max(tall, height)
        top += tall


def _panel(observed: Observed, panel: Panel) -> dict[str, Any]:
    common = {
        "title": panel.title,
        "description": panel.described(observed),
        "datasource": SOURCE,
    }
    if not panel.queries:
        return {
            **common,
            "type": "text",
            "options": {"mode": "markdown", "content": panel.text},
        }
    defaults: dict[str, Any] = {"unit": panel.unit, "noValue": "no data"}
    if panel.least is not None:
        defaults["min"] = panel.least
    if panel.most is not None:
        defaults["max"] = panel.most
    defaults["thresholds"] = {"mode": "absolute", "steps": _steps(panel)}
    if panel.lines:
        defaults["color"] = {"mode": "palette-classic"}
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 8,
            "showPoints": "never",
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "line"},
        }
        options: dict[str, Any] = {
            "legend": {
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
                "calcs": [],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        defaults["color"] = {"mode": "thresholds"}
        options = {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "textMode": "value_and_name" if panel.named else "value",
            "orientation": "auto",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    return {
        **common,
        "type": "timeseries" if panel.lines else "stat",
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": list(_targets(observed, panel.queries)),
    }


def _steps(panel: Panel) -> list[dict[str, Any]]:
    good, bad = ("green", "red") if panel.bad_above else ("red", "green")
    first: dict[str, Any] = {"color": good, "value": None}
    if panel.limit is None:
        return [{**first, "color": "green"}]
    return [first, {"color": bad, "value": panel.limit}]


def _targets(observed: Observed, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for letter, name in zip("ABCDEFGHIJ", names, strict=False):
        query = observed.queries[name]
        yield {
            "refId": letter,
            "datasource": SOURCE,
            "expr": observed.panels.fill(query.expr),
            "legendFormat": query.legend,
            "editorMode": "code",
            "range": True,
        }
