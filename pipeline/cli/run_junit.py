"""The JUnit file that ``run`` leaves behind, whether it came to its checks or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import PipelineError, UsageError
from pipeline.running.planner import PlannedStage
from pipeline.stages.verify import JUNIT_NAME


class RunJUnit:
    """The file to be of a run; without a path, nothing is written.

    Attributes:
        written: Whether there is one.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.written = path, False

    def look(self, planned: PlannedStage) -> None:
        """Copies what a stage says of its checks, if it is one that has any."""
        found = planned.artifact.path / JUNIT_NAME if planned.artifact else None
        if self.path and found and found.is_file():
            self.path.write_bytes(found.read_bytes())
            self.written = True

    def break_off(self, model: str, case: str, reason: str) -> None:
        """Writes a failed case in the place of the checks, unless they were made."""
        if self.path is None or self.written:
            return
        # Only here: it brings every check along.
        from pipeline.cli.conformance import HERE, JUnit

        JUnit(self.path, HERE, model).break_off(case, reason, "a run comes to its checks")


@contextmanager
def junit_of_run(path: Path | None, name: str) -> Iterator[RunJUnit]:
    """Opens a JUnit file that is also written when a run does not come to its checks.

    Args:
        path: Where; None writes none.
        name: The recipe's, which stands for the model there.

    Raises:
        PipelineError: What was raised inside.
    """
    file = RunJUnit(path)
    try:
        yield file
    except UsageError:
        raise  # what is wrong with the command line or the recipe says nothing of a server
    except PipelineError as error:
        file.break_off(name, "run", str(error))
        raise
    except KeyboardInterrupt:
        file.break_off(name, "interrupted", "the run was interrupted")
        raise
