"""What ``verify`` is asked to do, and the JUnit file that it leaves behind however it ends."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cli.options import Connection
from pipeline.client_errors import client_errors
from pipeline.errors import PipelineError, UsageError, VerificationError
from pipeline.source.prompts import read_prompts
from pipeline.verify import (
    CheckResult,
    Plan,
    Report,
    chosen_checks,
    to_junit,
)

HERE = "127.0.0.1"


@dataclass(frozen=True)
class Options:
    """Options of a conformance run.

    Attributes:
        fields: Arguments of :func:`pipeline.verify.run_conformance`.
        count: How many checks they select.
    """

    fields: dict[str, Any]
    count: int


def options_of(
    only: Collection[str] | None,
    skip: Collection[str] | None,
    prompts: Path | None,
    tolerance: float | None,
    *,
    strict: bool,
    patience: float,
    thorough: bool = False,
) -> Options:
    """Checks the options before a server is started or asked for anything.

    Raises:
        UsageError: One of them is wrong.
    """
    if tolerance is not None and strict:
        raise UsageError(
            "--strict and --tolerance exclude each other",
            fix="Leave one out; --strict demands equal texts",
        )
    if tolerance is not None and not (tolerance > 0 and math.isfinite(tolerance)):
        raise UsageError(
            f"--tolerance must be a number above 0, not {tolerance:g}",
            fix="Give --strict where texts must be equal",
        )
    only, skip = _names(only), _names(skip)
    fields = {
        "only": only,
        "skip": skip,
        "tolerance": tolerance,
        "strict": strict,
        "thorough": thorough,
        "plan": Plan(patience=patience),
        "prompts": None if prompts is None else read_prompts(prompts),
    }
    return Options(fields, len(chosen_checks(only, skip, thorough=thorough)))


def _names(given: Collection[str] | None) -> tuple[str, ...]:
    """The names in an option that may be repeated and may hold several with commas."""
    return tuple(word.strip() for part in given or () for word in part.split(","))


@dataclass
class JUnit:
    """The file to be; without a path, nothing is written.

    Attributes:
        path: Where.
        url: The server's address.
        model: The Triton model that takes the requests.
        results: What has been found so far.
    """

    path: Path | None
    url: str
    model: str
    results: list[CheckResult] = field(default_factory=list)

    def note(self, result: CheckResult) -> None:
        """Takes the result of one check."""
        self.results.append(result)

    def finish(self, report: Report) -> None:
        """Writes the whole report."""
        if self.path:
            self.path.write_text(to_junit(report), encoding="utf-8")

    def break_off(
        self, name: str, reason: str, proves: str = "a server answers until the last check"
    ) -> None:
        """Writes what was found so far, and why there is no more as a failed case.

        Args:
            name: Of the case.
            reason: Why it failed.
            proves: What it would have proven.
        """
        last = CheckResult(name, proves, "failed", 0.0, reason)
        self.finish(Report(self.url, self.model, "", (*self.results, last)))


@contextmanager
def junit_of(path: Path | None, server: Connection) -> Iterator[JUnit]:
    """Opens a JUnit file that is also written when no server answers, or at an interruption.

    Raises:
        PipelineError: What was raised inside.
    """
    # A server that is started here listens on this address, on a port that is not known yet.
    file = JUnit(path, server.url or HERE, server.model)
    try:
        with client_errors():
            yield file
    except VerificationError:
        raise  # the report is written
    except PipelineError as error:
        # What is wrong with the command line says nothing of a server; what one refused does.
        if error.name != UsageError.__name__:
            file.break_off("server", str(error))
        raise
    except KeyboardInterrupt:
        file.break_off("interrupted", "the run was interrupted")
        raise
