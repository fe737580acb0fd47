"""A conformance report as JSON, as JUnit XML and as a table."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import timezone
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from pipeline.tables import print_table, tally
from pipeline.verify.report import Report

# XML 1.0 has no way to write these, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "url": report.url,
        "model": report.model,
        "server": report.server,
        "tolerance": report.tolerance,
        "prompts": report.prompts,
        "passed": report.count("passed"),
        "failed": report.count("failed"),
        "skipped": report.count("skipped"),
        "seconds": round(report.seconds, 3),
        "checks": [asdict(result) for result in report.results],
    }


def to_junit(report: Report) -> str:
    """The report as a JUnit XML document: one suite, a case per check.

    The suite's host is the server's without its port, so that it is the same in every run.
    """
    suite = ElementTree.Element(
        "testsuite",
        name=f"conformance of {report.model}",
        timestamp=f"{report.started.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%S}",
        hostname=_xml(_host(report.url)),
        tests=str(len(report.results)),
        failures=str(report.count("failed")),
        skipped=str(report.count("skipped")),
        errors="0",
        time=f"{report.seconds:.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"url": report.url, "server": report.server, "prompts": report.prompts}
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=name, value=_xml(value))
    for result in report.results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"conformance.{report.model}",
            name=result.name,
            time=f"{result.seconds:.3f}",
        )
        if result.status != "passed":
            kind = "failure" if result.status == "failed" else "skipped"
            ElementTree.SubElement(case, kind, message=_xml(result.reason or ""))
        details = {"proves": result.proves, **result.details}
        output = ElementTree.SubElement(case, "system-out")
        output.text = _xml(json.dumps(details, ensure_ascii=False, indent=1))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(
        root, encoding="unicode"
    )


def _host(url: str) -> str:
    """The host of an address."""
    return urlsplit(url if "://" in url else f"//{url}").hostname or url


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def print_report(report: Report) -> None:
    """Prints the report as a table, and below it how many checks ended in which way."""
    print_table(
        ["check", "result", "seconds", "what it proves, or why it did not"],
        [[r.name, r.status, r.seconds, r.reason or r.proves] for r in report.results],
        title=f"{report.url}  {report.server}  {report.model}  {_comparison(report)}",
        styles=_COLOURS,
    )
    print(f"\n{tally(to_json(report))}")
    if report.prompts:
        print(f"prompts: {report.prompts}")


def _comparison(report: Report) -> str:
    if report.tolerance is None:
        return "equal texts"
    return f"near ties within {report.tolerance:g}"
