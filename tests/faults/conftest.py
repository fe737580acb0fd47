"""Real servers to break, and the table of what that did."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .record import Fault, show, write
from .service import Service

HERE = Path(__file__).parent
_REPORT = pytest.StashKey[Path]()
_FAULTS = pytest.StashKey[list[Fault]]()
_OUTCOME = pytest.StashKey[pytest.TestReport]()

REPOSITORY = "TRTLLM_PIPELINE_FAULTS_REPOSITORY"
"""Names a repository that was built before; without it the demo's is built."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults-report", metavar="FILE", help="Print the table of faults, and write it as JSON."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FAULTS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("injected")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        item.stash[_OUTCOME] = report
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    path, faults = config.getoption("--faults-report"), config.stash[_FAULTS]
    if not path or not faults:
        return
    write(faults, Path(path))
    terminalreporter.section("faults")
    show(faults)
    print(f"As JSON: {path}")


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Callable[..., Fault]]:
    """Opens rows of the table; they get the test's verdict."""
    made: list[Fault] = []

    def begin(name: str, injected: str, holds: str) -> Fault:
        made.append(Fault(name, injected, holds))
        return made[-1]

    yield begin
    report = request.node.stash.get(_OUTCOME, None)
    for row in made:
        row.outcome = report.outcome if report else "failed"
        if row.outcome == "skipped" and isinstance(report.longrepr, tuple):
            row.why = str(report.longrepr[2]).removeprefix("Skipped: ")
    request.config.stash[_FAULTS] += made


@pytest.fixture(scope="session")
def repository(request: pytest.FixtureRequest) -> Path:
    if named := os.environ.get(REPOSITORY):
        return Path(named).resolve()
    return Path(request.getfixturevalue("demo")["outputs"]) / "repository"


@pytest.fixture(scope="session")
def service(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The server that most faults are injected into; each of them leaves it ready."""
    with Service(repository, tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts servers for one test alone; arguments as for :class:`Service` after the folder."""
    opened: list[Service] = []

    def start(repository: Path, *options: str, **more: Any) -> Service:
        folder = tmp_path / f"service-{len(opened)}"
        folder.mkdir()
        opened.append(Service(repository, folder, *options, **more))
        return opened[-1].start()

    try:
        yield start
    finally:
        for service in opened:
            service.close()
