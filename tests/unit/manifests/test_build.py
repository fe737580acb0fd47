"""What a build says of itself, and whose report is beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import RepositoryError
from pipeline.manifests.build import read_build

from .support import deployed, measured_report, write_build


def test_the_report_of_another_repository_is_not_taken(tmp_path: Path) -> None:
    """A run that failed leaves its report beside the repository of the one before."""
    repository = write_build(tmp_path / "m", report=measured_report())
    assert read_build(repository).section("load")
    path = repository.parent / "report.json"
    report = json.loads(path.read_text())
    report["stages"][0]["digest"] = "0" * 64
    path.write_text(json.dumps(report))
    assert read_build(repository).report == {}


@pytest.mark.parametrize("text", ["{", "[1]", '{"stages": 3}', '{"stages": [null]}'])
def test_a_report_that_is_none_is_refused_or_left(text: str, tmp_path: Path) -> None:
    repository = write_build(tmp_path / "m")
    (repository.parent / "report.json").write_text(text)
    if text == "{":
        with pytest.raises(RepositoryError, match="the report beside the repository cannot be"):
            read_build(repository)
    else:
        assert read_build(repository).report == {}


def test_a_repository_without_a_manifest_is_refused(tmp_path: Path) -> None:
    repository = write_build(tmp_path / "m")
    (repository / "artifact.json").unlink()
    with pytest.raises(RepositoryError, match=r"has no artifact\.json"):
        read_build(repository)
    write_build(tmp_path / "other")
    manifest = json.loads((tmp_path / "other/repository/artifact.json").read_text())
    del manifest["facts"]["bytes"]
    (repository / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(RepositoryError, match="does not say the digest and the size"):
        read_build(repository)


@pytest.mark.parametrize(
    "load",
    [
        {"measurements": [{"concurrency": 8}]},
        {"measurements": [{"concurrency": None, "itl_ms": {"p95": 1.0}}, {"concurrency": 2}]},
        {"measurements": 3},
    ],
)
def test_a_report_without_its_numbers_is_refused(load: object, tmp_path: Path) -> None:
    report = {**measured_report(), "load": load}
    repository = write_build(tmp_path / "m", report=report)
    with pytest.raises(RepositoryError, match="does not say what was measured"):
        deployed(repository)
