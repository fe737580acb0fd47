"""A model from the Hub: the real huggingface_hub against a small Hub on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ..conftest import DEMO_MODEL, PROJECT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {path.name: path.read_bytes() for path in DEMO_MODEL.iterdir()} | {
    "pytorch_model.bin": b"never to be fetched",
    "modeling_custom.py": b"raise SystemExit",
}
TOKEN = "hf_test_secret"


class Hub(BaseHTTPRequestHandler):
    """Answers the questions that a snapshot download asks."""

    fetched: list[str]
    asked = 0
    gated = False
    down = 0

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        type(self).asked += 1
        if self.down:
            self._send(self.down, b"<html>Please log in</html>", {}, body=body)
        elif self.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b"", {"X-Error-Code": "GatedRepo"}, body=body)
        elif self.path.startswith("/api/models/org/tiny/revision/"):
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in FILES]}
            self._send(200, json.dumps(info).encode(), {}, body=body)
        elif self.path.startswith(f"/api/models/org/tiny/tree/{COMMIT}"):
            # Asked for by huggingface_hub 1 and later.
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for name, data in FILES.items()
            ]
            self._send(200, json.dumps(tree).encode(), {}, body=body)
        elif self.path.startswith((f"/org/tiny/resolve/{COMMIT}/", "/org/tiny/resolve/main/")):
            name = self.path.rpartition("/")[2]
            if body:
                type(self).fetched.append(name)
            headers = {
                "ETag": f'"{hashlib.sha256(FILES[name]).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
            }
            self._send(200, FILES[name], headers, body=body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    handler = type("FreshHub", (Hub,), {"fetched": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _run(
    tmp_path: Path, endpoint: str, *arguments: str, command: str = "run", **env: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **env,
    }
    return subprocess.run(
        [sys.executable, "-m", "pipeline", command, "configs/demo.yaml",
         *(["--until", "source"] if command == "run" else []),
         "--build-dir", str(tmp_path / "build"), "--set", "model.source=org/tiny", *arguments],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def _source(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["stages"][0])


def test_a_hub_id_is_resolved_to_its_commit_and_fetched_once(
    tmp_path: Path, hub: tuple[type[Hub], str]
) -> None:
    handler, endpoint = hub
    first = _source(_run(tmp_path, endpoint, "--json"))
    wanted = {path.name for path in DEMO_MODEL.iterdir()}
    assert set(handler.fetched) == wanted
    names = {path.name for path in Path(first["path"]).iterdir()} - {"artifact.json"}
    assert names == wanted
    handler.fetched.clear()
    again = _source(_run(tmp_path, endpoint, "--json"))
    assert again["status"] == "cached"
    assert handler.fetched == []
    # Once fetched, no network is needed: the cache knows which commit `main` was.
    offline = _source(_run(tmp_path, "http://127.0.0.1:9", "--json"))
    assert offline["key"] == first["key"]


def test_plan_reads_end_ids_of_what_is_there_and_fetches_config_json_alone(
    tmp_path: Path, hub: tuple[type[Hub], str]
) -> None:
    handler, endpoint = hub
    before = _run(tmp_path, endpoint, command="plan")
    assert before.returncode == 0, before.stderr
    assert "end ids: read when the model is fetched" in before.stdout
    assert handler.fetched == ["config.json"]
    _source(_run(tmp_path, endpoint, "--json"))
    after = json.loads(_run(tmp_path, endpoint, "--json", command="plan").stdout)
    assert [end["id"] for end in after["end_ids"]["ends"]] == [1]
    assert after["findings"] == []


def test_a_hub_copy_and_a_local_copy_are_the_same_model(
    tmp_path: Path, hub: tuple[type[Hub], str]
) -> None:
    fetched = _source(_run(tmp_path, hub[1], "--json"))
    local = _source(_run(tmp_path, hub[1], "--set", f"model.source={DEMO_MODEL}", "--json"))
    assert fetched["key"] != local["key"]
    # Later stages are keyed by the digest, so nothing is quantized twice.
    assert fetched["digest"] == local["digest"]


def test_what_cannot_work_is_refused_before_the_weights_are_fetched(
    tmp_path: Path, hub: tuple[type[Hub], str]
) -> None:
    handler, endpoint = hub
    refused = _run(tmp_path, endpoint, "--set", "compile.tensor_parallel=3")
    assert refused.returncode == 3
    assert "4 attention heads cannot be split over 3 ranks" in refused.stderr
    assert handler.fetched == ["config.json"]


def test_a_gated_model_needs_the_token_from_the_environment(
    tmp_path: Path, hub: tuple[type[Hub], str]
) -> None:
    handler, endpoint = hub
    handler.gated = True
    refused = _run(tmp_path, endpoint)
    assert refused.returncode == 5
    assert "org/tiny cannot be fetched from the Hub" in refused.stderr
    assert "HF_TOKEN" in refused.stderr
    allowed = _run(tmp_path, endpoint, HF_TOKEN=TOKEN)
    assert allowed.returncode == 0, allowed.stderr
    for path in (tmp_path / "build").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_an_unreachable_hub_is_one_short_paragraph(tmp_path: Path) -> None:
    failed = _run(tmp_path, "http://127.0.0.1:9")
    assert failed.returncode == 5
    _, _, error = failed.stderr.partition("error: ")
    assert "The Hub cannot be reached" in error
    assert len(error) < 400


class Silent:
    """A port that takes connections, counts them, and answers none."""

    def __init__(self, *, hang_up: bool) -> None:
        self.taken: list[socket.socket] = []
        self._hang_up = hang_up
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):  # it is closed at the end
            while True:
                taken, _ = self._socket.accept()
                self.taken.append(taken)
                if self._hang_up:
                    taken.close()

    def close(self) -> None:
        for each in (*self.taken, self._socket):
            each.close()


@pytest.fixture
def silent(request: pytest.FixtureRequest) -> Iterator[Silent]:
    made = Silent(hang_up=getattr(request, "param", "hangs up") == "hangs up")
    yield made
    made.close()


def _fetched_before(tmp_path: Path, commit: str = COMMIT, *, names: set[str] | None = None) -> None:
    """Lays out the cache by hand, as huggingface_hub's documentation describes it."""
    cache = tmp_path / "home" / "hub" / "models--org--tiny"
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    for path in DEMO_MODEL.iterdir():
        if names is None or path.name in names:
            shutil.copy(path, cache / "snapshots" / commit)


NO_WAIT = {"HF_HUB_ETAG_TIMEOUT": "1"}
# What huggingface_hub, requests and urllib3 say of a try that failed.
RAW = ("Retrying", "HTTPConnectionPool", "Max retries", "thrown while requesting", "Errno")


@pytest.mark.parametrize("silent", ["hangs up", "swallows packets"], indirect=True)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_silent_hub_is_asked_once_and_the_cache_answers(
    tmp_path: Path, silent: Silent, command: str
) -> None:
    _fetched_before(tmp_path)
    done = _run(tmp_path, silent.endpoint, "--json", command=command, **NO_WAIT)
    source = _source(done)
    assert (source["digest"] is None) == (command == "plan")
    assert len(silent.taken) == 1
    assert done.stderr.count("does not answer") == 1
    assert "HF_HUB_OFFLINE=1" in done.stderr
    assert not [word for word in RAW if word in done.stderr], done.stderr


def test_what_was_not_fetched_of_a_silent_hub_ends_after_one_request(
    tmp_path: Path, silent: Silent
) -> None:
    _fetched_before(tmp_path)
    revision = ("--set", "model.revision=v2")
    failed = _run(tmp_path, silent.endpoint, *revision, command="plan", **NO_WAIT)
    assert failed.returncode == 5
    assert "revision v2 of it was not fetched here before" in failed.stderr
    assert len(silent.taken) == 1
    assert not [word for word in RAW if word in failed.stderr], failed.stderr


def test_with_the_offline_variable_nobody_is_asked(tmp_path: Path, silent: Silent) -> None:
    _fetched_before(tmp_path)
    done = _run(tmp_path, silent.endpoint, "--json", command="plan", HF_HUB_OFFLINE="1")
    assert _source(done)["status"] == "run"
    assert done.stderr == ""
    assert silent.taken == []


def test_a_pinned_commit_is_planned_without_a_request(tmp_path: Path, silent: Silent) -> None:
    _fetched_before(tmp_path)
    pinned = ("--set", f"model.revision={COMMIT}", "--json")
    done = _run(tmp_path, silent.endpoint, *pinned, command="plan")
    assert _source(done)["status"] == "run"
    assert (done.stderr, silent.taken) == ("", [])


def test_weights_that_were_not_fetched_are_told_from_a_model_without(
    tmp_path: Path, silent: Silent
) -> None:
    _fetched_before(tmp_path, names={"config.json"})
    failed = _run(tmp_path, silent.endpoint, **NO_WAIT)
    assert failed.returncode == 5
    assert "the weights of it were not fetched here before" in failed.stderr
    assert len(silent.taken) == 1


@pytest.mark.parametrize("status", [503, 429, 200])
def test_a_hub_that_is_down_is_as_one_that_is_silent(
    tmp_path: Path, hub: tuple[type[Hub], str], status: int
) -> None:
    handler, endpoint = hub
    _fetched_before(tmp_path)
    handler.down = status
    done = _run(tmp_path, endpoint, "--json", command="plan")
    assert _source(done)["status"] == "run"
    assert handler.asked == 1
    assert "does not answer" in done.stderr


def test_an_unknown_id_is_named(tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    failed = _run(tmp_path, hub[1], "--set", "model.source=org/absent")
    assert failed.returncode == 5
    assert "org/absent cannot be fetched from the Hub" in failed.stderr
    assert "model.source" in failed.stderr


def test_init_fetches_config_json_alone_and_pins_the_commit(
    tmp_path: Path, hub: tuple[type[Hub], str]
) -> None:
    handler, endpoint = hub
    made = _init(tmp_path, endpoint)
    assert made.returncode == 0, made.stderr
    assert handler.fetched == ["config.json"]
    text = (tmp_path / "tiny-int4-awq.yaml").read_text()
    assert f"revision: {COMMIT}\n" in text
    assert "source: org/tiny\n" in text
    # What plan needs is in the cache by now.
    planned = _init(tmp_path, "http://127.0.0.1:9", "plan", "tiny-int4-awq.yaml")
    assert planned.returncode == 0, planned.stderr


def test_init_says_plainly_that_there_is_no_network(tmp_path: Path) -> None:
    for offline, why in (
        ({}, "The Hub cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, so the Hub is not asked"),
    ):
        failed = _init(tmp_path, "http://127.0.0.1:9", **offline)
        assert failed.returncode == 5
        assert f"org/tiny cannot be fetched from the Hub. {why}" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert not list(tmp_path.glob("*.yaml"))


def _init(
    folder: Path, endpoint: str, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(PROJECT),
        **env,
    }
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *(arguments or ("init", "org/tiny"))],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
