"""A real Prometheus that scrapes a served build under load: every panel and rule has numbers.

``make watch-proof`` runs it and prints the table. The load is bounded: forty clients at the
gateway, and once the server is killed and started again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.tables import number
from pipeline.triton.ports import reserve

from ..conftest import PROJECT
from ..processes import started

UNPACKED = PROJECT / "build" / "operate" / "prometheus" / "usr" / "bin"
CLIENTS = 40
GENEROUS_S = 240
NAMES = ("grpc", "metrics", "gateway", "prometheus")
VARIABLES = {
    "$__rate_interval": "15s",
    "$namespace": ".+",
    "$model": ".+",
    "$pod": ".+",
    "$price": "1.5",
}

pytestmark = [pytest.mark.proof, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Watched:
    """A served build and the Prometheus that watches it.

    Attributes:
        dashboard: What manifests wrote for Grafana.
        scaling: The ScaledObject.
        url: Prometheus' address.
        restart: Kills the server and starts it again on its ports.
        completions: The gateway's address for completions.
    """

    dashboard: Mapping[str, Any]
    scaling: Mapping[str, Any]
    url: str
    restart: Callable[[], None]
    completions: str

    def ask(self, path: str, **query: str) -> Any:
        """What Prometheus' HTTP API answers."""
        text = urllib.parse.urlencode(query)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{text}", timeout=30) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return found["data"]

    def values(self, expression: str) -> list[float]:
        """The numbers of an expression now, without those that are none."""
        rows = self.ask("query", query=expression)["result"]
        numbers = [float(row["value"][1]) for row in rows]
        return [value for value in numbers if not math.isnan(value)]


def program(name: str) -> str:
    found = shutil.which(name, path=str(UNPACKED)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here; make watch-proof fetches it")
    return found


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + GENEROUS_S
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, what
        time.sleep(1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def written(build: Path, kind: str, folder: Path) -> dict[str, str]:
    command = [sys.executable, "-m", "pipeline", "manifests", str(build), "--kind", kind]
    command += ["--output", str(folder / kind), "--set", "monitoring.pricePerHour=1.5"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: path.read_text() for path in (folder / kind).glob("[a-z]*")}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    prometheus = program("prometheus")
    build = os.environ.get("TRTLLM_PIPELINE_WATCHED")
    if build is None:
        pytest.skip("TRTLLM_PIPELINE_WATCHED names no finished build; make watch-proof does")
    folder = tmp_path_factory.mktemp("watched")
    ports = reserve("127.0.0.1", dict.fromkeys(NAMES, 0))
    here = Path(build)
    made = {kind: written(here, kind, folder) for kind in ("prometheus", "grafana", "keda")}
    scrape = yaml.safe_load(made["prometheus"]["scrape.yml"])
    for config in scrape["scrape_configs"]:
        config["scrape_interval"] = "1s"
        (static,) = config["static_configs"]
        port = ports["metrics" if static["labels"]["component"] == "server" else "gateway"]
        static["targets"] = [f"127.0.0.1:{port}"]
    file = folder / "prometheus" / "prometheus.yml"
    file.write_text(yaml.safe_dump({"global": {"evaluation_interval": "1s"}, **scrape}))
    serve = [sys.executable, "-m", "pipeline", "serve", str(here)]
    serve += ["--grpc-port", str(ports["grpc"]), "--metrics-port", str(ports["metrics"])]
    gateway = [sys.executable, "-m", "pipeline", "gateway", "--tokenizer", str(here)]
    gateway += ["--url", f"127.0.0.1:{ports['grpc']}", "--port", str(ports["gateway"])]
    watch = [prometheus, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    watch += [f"--web.listen-address=127.0.0.1:{ports['prometheus']}", "--log.level=warn"]
    metrics = f"http://127.0.0.1:{ports['metrics']}/metrics"
    front = f"http://127.0.0.1:{ports['gateway']}"

    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("wb"))
        running: list[ExitStack] = []

        def restart() -> None:
            if running:
                running.pop().close()  # kills it; what it started ends with it
                until(lambda: not answers(metrics), "the server that was killed goes on")
            one = stack.enter_context(ExitStack())
            one.enter_context(started(serve, stdout=log, stderr=log))
            running.append(one)
            until(lambda: answers(metrics), "the server does not answer")

        restart()
        stack.enter_context(started(gateway, stdout=log, stderr=log))
        until(lambda: answers(f"{front}/health/ready"), "the gateway does not answer")
        stack.enter_context(started(watch, stdout=log, stderr=log))
        url = f"http://127.0.0.1:{ports['prometheus']}"
        until(lambda: answers(f"{url}/-/ready"), "Prometheus does not answer")
        (dashboard,) = made["grafana"].values()
        yield Watched(
            json.loads(dashboard),
            yaml.safe_load(made["keda"]["scaledobject.yaml"]),
            url,
            restart,
            f"{front}/v1/completions",
        )


@contextmanager
def load(watched: Watched) -> Iterator[None]:
    """Clients that ask again and again, until the block ends."""
    done = threading.Event()
    told = {"max_tokens": 200, "temperature": 0, "stream": False, "model": model_of(watched)}

    def client(name: int) -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            body = {**told, "prompt": f"Once there were {name} girls and {turn} dogs"}
            request = urllib.request.Request(
                watched.completions,
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    answer.read()
            except (OSError, urllib.error.URLError):
                done.wait(0.2)

    clients = [threading.Thread(target=client, args=(name,)) for name in range(CLIENTS)]
    for one in clients:
        one.start()
    try:
        yield
    finally:
        done.set()
        for one in clients:
            one.join()


def model_of(watched: Watched) -> str:
    with urllib.request.urlopen(watched.completions.replace("completions", "models")) as answer:
        return str(json.load(answer)["data"][0]["id"])


def targets(dashboard: Mapping[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    """Expression and description by the panel's title and the target's letter."""
    found = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found[panel["title"], target["refId"]] = expression, target["legendFormat"]
    return found


def test_every_panel_has_numbers_under_load(watched: Watched) -> None:
    wanted = targets(watched.dashboard)
    # No cluster is here, so nothing of kube-state-metrics is.
    absent = {key for key, (expression, _) in wanted.items() if "kube_" in expression}
    seen: dict[tuple[str, str], list[float]] = {}

    def look() -> bool:
        for key, (expression, _) in wanted.items():
            if values := watched.values(expression):
                seen[key] = values
        return seen.keys() | absent >= wanted.keys()

    with load(watched):
        until(lambda: look() or len(seen) > len(wanted) / 2, "hardly a panel has numbers")
        # What waits is a part of the load: more clients than a batch has places.
        until(
            lambda: max(watched.values(wanted["Requests waiting", "A"][0]), default=0) > 0,
            "no request ever waits",
        )
        watched.restart()
        restarts = wanted["Restarts", "A"][0]
        until(lambda: max(watched.values(restarts), default=0) > 0, "no restart is seen")
        complete = False
        deadline = time.monotonic() + GENEROUS_S
        while not complete and time.monotonic() < deadline:
            complete = look() and max(seen["Tokens", "A"]) > 0
            time.sleep(1)
    for (title, letter), (_, legend) in wanted.items():
        values = seen.get((title, letter))
        shown = f"{len(values)} series, {number(max(values), 3)}" if values else "no data"
        if (title, letter) in absent:
            shown = "needs kube-state-metrics"
        print(f"{title:<40.40}{letter}  {legend:<34.34}{shown}")
    print(f"{len(seen)} of {len(wanted)} expressions have numbers")
    missing = wanted.keys() - seen.keys() - absent
    assert not missing
    with_numbers = {title for title, _ in seen}
    assert with_numbers == {title for title, _ in wanted}


def test_what_is_shown_is_what_the_engine_has(watched: Watched) -> None:
    wanted = targets(watched.dashboard)
    most = next(key for key, (_, legend) in wanted.items() if legend.endswith("most in a batch"))
    # configs/demo.yaml: 32 sequences, of 512 tokens, in blocks of 32.
    assert watched.values(wanted[most][0]) == [32]
    cache = next(key for key, (_, legend) in wanted.items() if legend.endswith("in the cache"))
    assert watched.values(wanted[cache][0]) == [512]


def test_every_rule_is_computed_and_autoscalers_get_one_number(watched: Watched) -> None:
    rules = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
    until(
        lambda: all(
            rule["health"] == "ok"
            for group in watched.ask("rules")["groups"]
            for rule in group["rules"]
        ),
        "a rule cannot be computed",
    )
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    for name in recorded:
        assert watched.ask("query", query=name)["result"], name
    for trigger in watched.scaling["spec"]["triggers"]:
        assert len(watched.ask("query", query=trigger["metadata"]["query"])["result"]) == 1
    firing = {
        alert["labels"]["alertname"]
        for alert in watched.ask("alerts")["alerts"]
        if alert["state"] == "firing"
    }
    print(f"{len(recorded)} recorded, {len(rules) - len(recorded)} alerts, firing: {firing}")
    # The server was started again; nothing else that has to last was true for so long.
    assert "TrtllmRestarts" in firing
    assert firing <= {"TrtllmRestarts", "TrtllmResumes"}
