"""A report in its three forms, and what it raises."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from pipeline.errors import UsageError, VerificationError
from pipeline.verify import (
    CheckResult,
    Report,
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


def test_results_are_told_as_they_come():
    seen = []
    with FakeModel().serve() as server:
        report = run_conformance(
            server.url, only=["readiness", "wire_contract"], on_result=seen.append
        )
    assert tuple(seen) == report.results
    assert report.url == f"grpc://{server.url}"
