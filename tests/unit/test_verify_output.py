"""A report in its three forms, and what it raises."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from xml.etree import ElementTree

import pytest

from pipeline.errors import UsageError, VerificationError
from pipeline.source.prompts import read_prompts
from pipeline.verify import (
    CHECKS,
    CheckResult,
    Report,
    chosen_checks,
    print_report,
    run_conformance,
    to_json,
    to_junit,
)
from tests.unit.client.fake_model import FakeModel

RESULTS = (
    CheckResult("one", "one holds", "passed", 0.25, details={"text": "né 😀 <&> \x00 \ufffe"}),
    CheckResult("two", "two holds", "failed", 1.5, "it does not: [bold]<x>.", {"pieces": ["a"]}),
    CheckResult("three", "three holds", "skipped", 0.0, "not exercised"),
)
REPORT = Report("grpc://h:1", "tensorrt_llm_bls", "triton 2.51.0", RESULTS)


def test_json_has_everything():
    content = json.loads(json.dumps(to_json(REPORT)))
    assert {key: content[key] for key in ("passed", "failed", "skipped", "seconds")} == {
        "passed": 1,
        "failed": 1,
        "skipped": 1,
        "seconds": 1.75,
    }
    assert content["server"] == "triton 2.51.0"
    assert content["checks"][0]["details"]["text"] == RESULTS[0].details["text"]
    assert content["checks"][1]["reason"] == "it does not: [bold]<x>."


def test_junit_says_when_and_on_which_server():
    started = datetime(2026, 11, 28, 11, 5, 7, tzinfo=timezone(timedelta(hours=2)))
    for url, host in (
        ("grpc://127.0.0.1:24076", "127.0.0.1"),
        ("grpcs://gpu.example:8001", "gpu.example"),
        ("localhost:8001", "localhost"),
        ("grpc://[::1]:8001", "::1"),
    ):
        report = Report(url, "ensemble", "triton 2.51.0", RESULTS, None, started, "plain texts")
        suite = ElementTree.fromstring(to_junit(report)).find("testsuite")
        # Universal time without a zone, as the schema of Jenkins and Apache Ant has it.
        assert suite.get("timestamp") == "2026-11-28T09:05:07"
        assert suite.get("hostname") == host
        properties = {p.get("name"): p.get("value") for p in suite.find("properties")}
        assert properties == {"url": url, "server": "triton 2.51.0", "prompts": "plain texts"}


def test_how_texts_were_compared_is_told(capsys):
    assert to_json(REPORT)["tolerance"] is None
    loose = Report("u", "m", "s", RESULTS, 0.25)
    assert to_json(loose)["tolerance"] == 0.25
    print_report(loose)
    assert "near ties within 0.25" in capsys.readouterr().out
    print_report(REPORT)
    assert "equal texts" in capsys.readouterr().out


def test_junit_is_a_document_that_parsers_read_back():
    suite = ElementTree.fromstring(to_junit(REPORT)).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    one, two, three = suite.findall("testcase")
    assert [case.get("name") for case in (one, two, three)] == ["one", "two", "three"]
    assert one.find("failure") is None
    assert "né 😀 <&>" in one.find("system-out").text
    assert two.find("failure").get("message") == "it does not: [bold]<x>."
    assert three.find("skipped").get("message") == "not exercised"


def test_the_table_shows_reasons_as_they_are(capsys):
    print_report(REPORT)
    shown = capsys.readouterr().out
    assert "what it proves" in shown
    assert "[bold]<x>" in shown
    assert "one holds" in shown
    assert "skipped" in shown


def test_the_last_line_counts_what_ended_in_which_way(capsys):
    for results, line in (
        (RESULTS, "1 passed, 1 failed, 1 skipped"),
        (RESULTS[:1], "1 passed"),
        (RESULTS[1:2], "0 passed, 1 failed"),
        (RESULTS[::2], "1 passed, 1 skipped"),
    ):
        print_report(Report("u", "m", "s", results))
        assert capsys.readouterr().out.splitlines()[-1] == line


def test_failures_are_raised_with_names_and_reasons():
    with pytest.raises(VerificationError, match="1 conformance check failed") as caught:
        REPORT.raise_for_failures()
    assert caught.value.exit_code == 6
    assert "two: it does not: [bold]<x>" in str(caught.value)
    Report("u", "m", "s", RESULTS[::2]).raise_for_failures()


def test_an_unknown_check_is_refused_with_the_names():
    with pytest.raises(UsageError, match="there is no check nope") as caught:
        run_conformance("127.0.0.1:1", only=["nope"])
    assert "readiness" in str(caught.value)


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_misspelt_check_is_refused_with_the_right_name(option):
    with pytest.raises(UsageError, match="there is no check log_prob") as caught:
        run_conformance("127.0.0.1:1", **{option: ["log_prob"]})
    assert caught.value.fix == "Did you mean log_probs?"


def test_checks_can_be_left_out():
    usual = [name for name, check in CHECKS.items() if not check.thorough]
    assert [c.name for c in chosen_checks(skip=["readiness"])] == usual[1:]
    assert [c.name for c in chosen_checks(thorough=True)] == list(CHECKS)
    assert [c.name for c in chosen_checks(["seeds"])] == ["seeds"]
    assert [c.name for c in chosen_checks(["log_probs", "readiness"])] == ["readiness", "log_probs"]
    assert [c.name for c in chosen_checks(["log_probs", "border"], ["border"])] == ["log_probs"]
    with pytest.raises(UsageError, match="no check is left"):
        chosen_checks(["border"], ["border"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "\ufeff  Once \r\n\nTwice\nTwice\n"),
        ("p.jsonl", '{"prompt": "  Once ", "id": 1}\n\n{"prompt": "Twice"}'),
    ],
)
def test_prompts_are_read_as_they_stand(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_prompts(tmp_path / name) == ["  Once ", "Twice"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "p.txt",
            b"one\n\none\n",
            "p.txt: the file needs at least two different prompts. It has 1,",
        ),
        ("p.jsonl", b"", "p.jsonl: the file needs at least two different prompts. It has none,"),
        ("p.txt", b"caf\xe9\n", "p.txt: the file of prompts is not UTF-8"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"prompt": ',
            'p.jsonl:2: the line is not a JSON object with a "prompt" or "messages"',
        ),
        ("p.jsonl", b'{"prompt": "a"}\n["b"]', "p.jsonl:2: the line is not a JSON object"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}', "p.jsonl:2: the line has no prompt"),
        ("p.jsonl", b'{"prompt": 7}', 'p.jsonl:1: "prompt" is int, not a string'),
        ("absent.txt", None, "absent.txt: the file of prompts cannot be read"),
    ],
)
def test_a_file_of_prompts_that_is_wrong_is_named_with_its_line(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        read_prompts(tmp_path / name)


def test_results_are_told_as_they_come():
    seen = []
    with FakeModel().serve() as server:
        report = run_conformance(
            server.url, only=["readiness", "wire_contract"], on_result=seen.append
        )
    assert tuple(seen) == report.results
    assert report.url == f"grpc://{server.url}"
