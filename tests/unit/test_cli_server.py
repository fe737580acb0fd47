"""The commands that talk to a server, in processes of their own against a fake one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.errors import RepositoryError, ServerError
from pipeline.serving import reachable, target_of, warning_of
from pipeline.store.deploy import deploy, set_aside
from pipeline.store.store import Store
from trtllm_client import ServerFailed

from ..conftest import PROJECT
from ..processes import started
from .client.fake_model import FakeModel
from .client.fake_triton import FakeTriton, piece
from .client.test_client import silent

# Whoever runs the tests may have made SIGINT ignored, as shells do for what runs behind them.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from pipeline.cli.main import main; main()"
)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", START, *arguments]


def _cli(
    *arguments: str, given: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        _command(*arguments),
        cwd=PROJECT,
        env={**os.environ, "COLUMNS": "120", **environment},
        input=given,
        capture_output=True,
        timeout=120,
        check=False,
    )


def _emoji(_asked: Any, _context: Any) -> Any:
    yield piece("né 😀", final=True)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, b"interrupted\n"), (signal.SIGTERM, 143, b"terminated\n")],
)
def test_a_signal_ends_the_request_and_the_command(
    number: signal.Signals, code: int, said: bytes
) -> None:
    with (
        FakeTriton(silent) as server,
        started(_command("generate", "--url", server.url, "Hi"), stderr=subprocess.PIPE) as running,
    ):
        assert running.stdout
        assert running.stdout.read(4) == b"Once"
        running.send_signal(number)
        _, told = running.communicate(timeout=60)
        assert (running.returncode, told) == (code, said)
        assert server.cancelled.wait(30)


# A server that takes a minute to start, and says what becomes of it.
SLOW_SERVER = """
import contextlib, time
from pipeline import serving

@contextlib.contextmanager
def slow(*_arguments, **_options):
    try:
        print("starting", flush=True)
        time.sleep({before})
        yield type("Server", (), dict.fromkeys(("grpc_url", "http_url"), "here")
                   | {{"metrics_url": "http://127.0.0.1:1", "patience_s": 5, "url": "here",
                       "addresses": {{"grpc": "here"}}, "metrics_headers": {{}},
                       "http": True, "encrypted": False, "trouble": None,
                       "news": staticmethod(lambda: []),
                       "wait": staticmethod(time.sleep)}})
    finally:
        print("stopped", flush=True)

serving.serving = slow
"""


@pytest.mark.parametrize(
    ("before", "last_line", "number", "code"),
    [
        (60, b"starting\n", signal.SIGINT, 130),
        (60, b"starting\n", signal.SIGTERM, 143),
        (0, b"ready in", signal.SIGINT, 0),
        (0, b"ready in", signal.SIGTERM, 0),
    ],
)
def test_serve_can_be_stopped_before_and_after_it_is_ready(
    tmp_path: Path, before: int, last_line: bytes, number: signal.Signals, code: int
) -> None:
    program = SLOW_SERVER.format(before=before) + START
    command = ["serve", str(tmp_path), "--log", str(tmp_path / "log")]
    with started([sys.executable, "-c", program, *command], stderr=subprocess.DEVNULL) as running:
        assert running.stdout
        for line in running.stdout:
            if line.startswith(last_line):
                break
        running.send_signal(number)
        told, _ = running.communicate(timeout=60)
    assert running.returncode == code
    assert b"stopped\n" in told
    assert told.count(b"stopping; waits up to 5 s for requests in flight") == (code == 0)


@pytest.mark.parametrize(
    "arguments",
    [("serve", "--grpc-port", "70000"), ("generate", "Hi", "--repository")],
    ids=["serve", "generate"],
)
def test_a_repository_that_failed_verification_says_so(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """Whatever comes of it: here a port that is none, and a repository without any model."""
    store = Store(tmp_path / "store")
    with store.workspace("repository", "k") as folder:
        (folder / "notes.txt").write_text("no model")
        made = store.publish(
            folder, stage="repository", key="k", material={}, inputs={}, facts={}, seconds=0
        )
    why = "verify failed: 2 conformance checks failed"
    kept = set_aside(made, tmp_path / "repository", store, "failed", why)
    assert kept == tmp_path / "repository.failed"
    done = _cli(*arguments, str(kept))
    warning = f"warning: {kept}: this repository was not released: {why}\n"
    assert done.stderr.decode().startswith(warning)
    assert done.returncode != 0
    # The artifact in the store is as it was, and nothing is said of it.
    assert store.verify() == []
    assert b"warning" not in _cli(*arguments, str(made.path)).stderr


def test_a_repository_from_before_a_run_that_did_not_pass_says_so(tmp_path: Path) -> None:
    """The report beside it is of the later run, and would be taken for its own."""
    store = Store(tmp_path / "store")
    with store.workspace("repository", "k") as folder:
        (folder / "notes.txt").write_text("no model")
        made = store.publish(
            folder, stage="repository", key="k", material={}, inputs={}, facts={}, seconds=0
        )
    repository, page = tmp_path / "mine" / "repository", tmp_path / "mine" / "report.json"
    deploy(made, repository, store)
    assert warning_of(repository) is None
    page.write_text('{"verdict": {"status": "passed", "headline": "INT4 AWQ: ships."}}')
    assert warning_of(repository) is None
    page.write_text('{"verdict": {"status": "failed", "headline": "INT4 AWQ: does not ship."}}')
    done = _cli("serve", str(repository.parent), "--grpc-port", "70000")
    said = "this repository is of an earlier run; the last one did not pass: INT4 AWQ: does not"
    assert said in " ".join(done.stderr.decode().split())
    page.write_text("[]")
    assert warning_of(repository) is None


@pytest.mark.parametrize(
    "place",
    ["smuggled", "postprocessing/2", "tensorrt_llm_bls/1/numpy", "preprocessing/1/json"],
    ids=["a model", "a version", "a package beside a model", "a module's name"],
)
@pytest.mark.parametrize("command", ["serve", "generate"])
def test_a_linked_folder_in_a_repository_is_not_served(
    command: str, place: str, tmp_path: Path
) -> None:
    """Triton would follow it, and run what is there."""
    store = Store(tmp_path / "store")
    with store.workspace("repository", "k") as folder:
        for model in ("postprocessing", "tensorrt_llm_bls", "preprocessing"):
            (folder / model / "1").mkdir(parents=True)
            (folder / model / "1" / "model.py").write_text("")
        made = store.publish(
            folder, stage="repository", key="k", material={}, inputs={}, facts={}, seconds=0
        )
    repository = tmp_path / "repository"
    deploy(made, repository, store)
    evil = tmp_path / "evil"
    (evil / "1").mkdir(parents=True)
    (evil / "1" / "model.py").write_text("")
    (repository / place).symlink_to(evil)
    named = [str(repository)] if command == "serve" else ["Hi", "--repository", str(repository)]
    done = _cli(command, *named)
    assert done.returncode == 5
    problem = f"the repository is not what was built: {place} is a link, not a file that was built"
    assert problem in done.stderr.decode()


@pytest.mark.parametrize("command", ["serve", "generate", "verify", "bench"])
def test_a_build_is_named_by_its_folder(command: str, tmp_path: Path) -> None:
    """What comes after finding it fails here: the repository has no models."""
    build = tmp_path / "build" / "mine"
    options = {
        "serve": ("serve", str(build)),
        "generate": ("generate", "Hi", "--repository", str(build)),
    }.get(command, (command, "--repository", str(build)))
    (build / "repository.unverified").mkdir(parents=True)
    (build / "repository.unverified" / "artifact.json").write_text("{}")
    refused = _cli(*options, "--json")
    told = json.loads(refused.stdout)
    assert (refused.returncode, told["what"]) == (2, "this build has no repository that passed")
    assert told["why"].startswith("Its repository was not verified")
    assert told["fix"].endswith(f"to take it nevertheless: {build}/repository.unverified")
    (build / "repository").mkdir()
    (build / "repository" / "artifact.json").write_text("{")
    broken = json.loads(_cli(*options, "--json").stdout)
    assert broken["where"] == str(build / "repository")
    assert broken["what"] == "the repository's artifact.json cannot be used"


def test_a_folder_that_is_no_repository_is_told_apart_from_one_that_is_broken(
    tmp_path: Path,
) -> None:
    with pytest.raises(RepositoryError, match="this folder is neither a repository nor that of a"):
        target_of(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.pbtxt").touch()
    with pytest.raises(RepositoryError, match=r"has no artifact\.json\. Name a repository that"):
        target_of(tmp_path)
    (tmp_path / "artifact.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"artifact\.json cannot be used\. It is not JSON"):
        target_of(tmp_path)


def test_a_terminal_without_emoji_gets_question_marks() -> None:
    with FakeTriton(_emoji) as server:
        done = _cli("generate", "--url", server.url, "Hi", PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stdout) == (0, b"n? ?\n"), done.stderr
        done = _cli("generate", "--url", server.url, "Hi", "--json", PYTHONIOENCODING="ascii")
        assert json.loads(done.stdout)["text"] == "né 😀"


def test_an_adapter_is_named_by_its_number() -> None:
    with FakeTriton(_emoji) as server:
        done = _cli("generate", "--url", server.url, "Hi", "--lora-task-id", "2")
        failed = _cli("generate", "--url", server.url, "Hi", "--lora-task-id", "-1")
    assert done.returncode == 0, done.stderr
    assert [asked.one("lora_task_id") for asked in server.asked] == [2]
    assert failed.returncode == 2
    assert b"lora_task_id must be between 0 and" in failed.stderr


def _counted(*texts: str) -> Any:
    """A model that answers with these texts, a token each."""

    def answer(_asked: Any, _context: Any) -> Any:
        for number, text in enumerate(texts, 1):
            yield piece(text, final=number == len(texts), num_output_tokens=1)

    return answer


CUT = "the text ended at --max-tokens 3; what it was to follow "


@pytest.mark.parametrize(
    ("guide", "texts", "told"),
    [
        (("--json-object",), ('{"a"', ":", " 1"), f"{CUT}is not complete\n"),
        (("--json-object",), ('{"a"', ":", "1}"), ""),
        (("--json-object",), ('{"a"', ":1}"), ""),
        (("--regex", "[a-z]+ [0-9]"), ("a", "b", "c"), f"{CUT}may not be complete\n"),
        ((), ("a", "b", "c"), ""),
    ],
    ids=["cut", "whole by chance", "ended", "regex", "unguided"],
)
@pytest.mark.parametrize("output", [(), ("--json",)], ids=["text", "json"])
def test_a_guided_text_that_was_cut_says_so(
    guide: tuple[str, ...], texts: tuple[str, ...], told: str, output: tuple[str, ...]
) -> None:
    with FakeTriton(_counted(*texts)) as server:
        done = _cli(
            "generate", "--url", server.url, "Hi", "--max-tokens", "3", *guide, *output
        )  # fmt: skip
    assert (done.returncode, done.stderr.decode()) == (0, told)
    if output:
        document = json.loads(done.stdout)
        assert document["text"] == "".join(texts)
        assert document["num_output_tokens"] == len(texts)
        assert document["finish_reason"] == ("length" if len(texts) == 3 else "stop")


def test_a_server_that_counts_no_tokens_leaves_open_why_the_text_ended() -> None:
    with FakeTriton(_emoji) as server:
        done = _cli("generate", "--url", server.url, "Hi", "--max-tokens", "1", "--json")
    document = json.loads(done.stdout)
    assert (document["finish_reason"], document["num_output_tokens"]) == (None, None)


def test_the_prompt_from_standard_input_is_checked_as_bytes() -> None:
    with FakeTriton(_emoji) as server:
        given = "Où est-il ?".encode()
        assert _cli("generate", "--url", server.url, "-", given=given).returncode == 0
        failed = _cli("generate", "--url", server.url, "-", given=b"caf\xe9")
    assert [asked.prompt for asked in server.asked] == ["Où est-il ?"]
    assert failed.returncode == 2
    assert failed.stderr.startswith(b"error: prompt is not valid UTF-8")


def test_words_that_look_like_options_are_prompts_and_values_where_they_stand_for_them() -> None:
    with FakeTriton(_emoji) as server:
        done = _cli("generate", "--url", server.url, "--stop", "--json", "--", "--debug")
    assert done.stdout.decode() == "né 😀\n"
    assert server.asked[0].prompt == "--debug"
    assert server.asked[0].values["stop_words"] == (b"--json",)


def test_a_failed_verification_is_one_document_with_what_was_found(tmp_path: Path) -> None:
    junit = tmp_path / "conformance.xml"
    with FakeModel("not_ready").serve() as server:
        failed = _cli("verify", "--url", server.url, "--json", "--junit", str(junit))
    assert failed.returncode == 6
    document = json.loads(failed.stdout)
    assert document["error"] == "VerificationError"
    assert document["failed"] == 1
    assert document["checks"][0]["name"] == "readiness"
    assert 'failures="1"' in junit.read_text()
    assert failed.stderr.startswith(b"conformance checks ...\n")


@pytest.mark.parametrize("option", ["--only", "--skip"])
def test_a_misspelt_check_is_refused_before_anything_is_asked(option: str, tmp_path: Path) -> None:
    junit = tmp_path / "conformance.xml"
    with FakeModel().serve() as server:
        failed = _cli(
            "verify", "--url", server.url, option, "border", option, "readyness", "--junit",
            str(junit), "--json",
        )  # fmt: skip
        assert server.asked == []
    assert failed.returncode == 2
    document = json.loads(failed.stdout)
    assert document["what"] == "there is no check readyness"
    assert document["fix"] == "Did you mean readiness?"
    assert not junit.exists()


def test_checks_and_prompts_are_those_that_were_named(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "A prompt of mine"}\n{"prompt": "Another"}\n')
    names = ("--only", "readiness, border", "--only", "log_probs", "--skip", "border,max_tokens")
    with FakeModel().serve() as server:
        done = _cli("verify", "--url", server.url, *names, "--prompts", str(prompts), "--json")
        asked = {one.prompt for one in server.asked if "text_input" in one.values}
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [check["name"] for check in document["checks"]] == ["readiness", "log_probs"]
    assert asked == {"A prompt of mine", "A prompt of mine 0", "Another 0"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--strict", "--tolerance", "0.1"), "--strict and --tolerance exclude each other"),
        (("--tolerance", "0"), "--tolerance must be a number above 0, not 0"),
        (("--tolerance", "nan"), "--tolerance must be a number above 0, not nan"),
        (("--prompts", "nowhere.txt"), "nowhere.txt: the file of prompts cannot be read"),
    ],
)
def test_options_of_verify_are_checked_first(options: tuple[str, ...], said: str) -> None:
    failed = _cli("verify", "--url", "127.0.0.1:1", *options)
    assert failed.returncode == 2
    assert said in failed.stderr.decode()


def test_a_junit_file_is_written_when_no_server_answers(tmp_path: Path) -> None:
    junit = tmp_path / "conformance.xml"
    failed = _cli("verify", "--url", "127.0.0.1:1", "--junit", str(junit))
    assert failed.returncode == 6
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert suite.get("hostname") == "127.0.0.1"
    (case,) = suite.findall("testcase")
    failure = case.find("failure")
    assert failure is not None
    assert case.get("name") == "server"
    assert "no Triton server answers here" in (failure.get("message") or "")


def test_a_junit_file_is_written_when_the_run_is_interrupted(tmp_path: Path) -> None:
    junit = tmp_path / "conformance.xml"
    with (
        FakeTriton(silent) as server,
        started(
            _command("verify", "--url", server.url, "--junit", str(junit)), stderr=subprocess.PIPE
        ) as running,
    ):
        deadline = time.monotonic() + 30
        while not server.asked and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert (running.returncode, told.splitlines()[-1]) == (130, b"interrupted")
    cases = ElementTree.parse(junit).getroot().findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["interrupted"]


def test_a_folder_without_a_tokenizer_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with FakeModel().serve() as server:
        failed = _cli("verify", "--url", server.url, "--tokenizer", str(tmp_path), "--json")
        assert server.asked == []
    assert failed.returncode == 2
    assert json.loads(failed.stdout)["what"] == (
        "this is neither a repository with probe texts nor a tokenizer's folder"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "Hi"],
        ["verify"],
        ["bench", "--concurrency", "1", "--requests", "1", "--rounds", "1"],
    ],
)
def test_every_command_sends_headers_and_takes_a_timeout(command: list[str]) -> None:
    header = ["--header", "Authorization=Bearer a=b", "--timeout", "30"]
    with FakeModel("not_ready").serve() as server:
        done = _cli(*command, "--url", server.url, *header)
        seen = [asked.metadata.get("authorization") for asked in server.asked]
    if command[0] == "verify":
        # Nothing is asked of a server that is not ready, but the options are understood.
        assert done.returncode == 6
        assert seen == []
    else:
        assert done.returncode == 0, done.stderr
        assert set(seen) == {"Bearer a=b"}


def test_measurements_are_told_while_they_are_made() -> None:
    options = ["--concurrency", "1", "--requests", "1", "--rounds", "1", "--output-tokens", "2"]
    with FakeModel().serve() as server:
        done = _cli("bench", "--url", server.url, *options, "--json")
    assert json.loads(done.stdout)["measurements"][0]["output_tokens"] == 2
    assert b"load test ...\n1 stream: " in done.stderr


def test_streams_are_listed_or_repeated() -> None:
    options = ["--requests", "1", "--rounds", "1", "--output-tokens", "2", "--json"]
    with FakeModel().serve() as server:
        done = _cli(
            "bench", "--url", server.url, *options, "--concurrency", "1, 3", "--concurrency", "2"
        )
    rows = json.loads(done.stdout)["measurements"]
    assert [row["concurrency"] for row in rows] == [1, 3, 2]


@pytest.mark.parametrize("given", ["1,x", "1,,2", "-1", "1.5"])
def test_what_is_no_list_of_streams_is_refused_before_a_server_is_asked(given: str) -> None:
    failed = _cli("bench", "--url", "127.0.0.1:1", "--concurrency", given, "--json")
    assert failed.returncode == 2
    assert json.loads(failed.stdout)["what"] == f"--concurrency {given} is no list of numbers"


class _Server:
    """Stands in for a server that writes a log."""

    url = "127.0.0.1:1"
    metrics_url = "http://127.0.0.1:1"
    http = False

    def __init__(self, _repository: Path, log: Path, **_options: Any) -> None:
        log.write_text("the cause")
        self.addresses, self.metrics_headers = {"grpc": self.url}, {}

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass


@pytest.mark.parametrize("failure", [ServerError("it died"), ServerFailed("no", fix="Look")])
def test_the_log_of_a_server_that_failed_is_kept_and_named(
    failure: ServerError | ServerFailed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pipeline.serving.serving", _Server)
    with (
        pytest.raises(ServerError, match="the server's log is") as caught,
        reachable(None, Path("x")),
    ):
        raise failure
    (log,) = tmp_path.glob("trtllm-pipeline-*/triton.log")
    assert str(log) in str(caught.value)


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt("stop"), ValueError("mine")])
def test_nothing_is_left_of_a_server_that_did_not_fail(
    failure: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pipeline.serving.serving", _Server)
    try:
        with reachable(None, Path("x")) as address:
            assert address.grpc == "127.0.0.1:1"
            if failure:
                raise failure
    except (KeyboardInterrupt, ValueError) as error:
        assert error is failure  # noqa: PT017 -- three outcomes, one of them no error
    assert list(tmp_path.iterdir()) == []
