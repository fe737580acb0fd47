"""Every error this project raises on purpose.

* PipelineError                      what went wrong, where, why, and what to do about it
  + UsageError              exit 2   the command line or a request is wrong
    - RecipeError                    the recipe is wrong: file, line and key are named
  + UnsupportedError        exit 3   a combination that cannot work, found before any work is done
    - MissingDependencyError         an optional package is not installed
  + QualityGateError        exit 4   a gate is not open: worse, odd, or not to be told
  + StageError              exit 5   a stage failed
    - SourceError                    the model to read is not usable
    - CheckpointError                a TensorRT-LLM checkpoint breaks its contract
    - CompileError                   the target could not compile the checkpoint
    - RepositoryError                the Triton repository is wrong or was changed
    - StoreError                     the artifact store cannot be read or written
  + ServerError             exit 6   Triton did not start, answer or stop
    - VerificationError              the server answered, wrongly

The command line prints ``str(error)`` and exits with ``error.exit_code``; nothing else decides
exit codes. The client's errors are its own, ``trtllm_client.ClientError``;
:func:`pipeline.client_errors.client_errors` makes them errors of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any


class PipelineError(Exception):
    """An error a user can act on, printed as one paragraph.

    Args:
        what: What went wrong, as a sentence without its full stop.
        where: The file, key, tensor or address it concerns.
        why: The cause, when it is known.
        fix: What to do about it; a command when there is one.
        found: What the command found before it failed: JSON values, shown with ``--json``.

    Attributes:
        name: What ``--json`` calls the error: its class, or that of the client's error it was.
    """

    exit_code = 5

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        fix: str | None = None,
        found: Mapping[str, Any] | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix
        self.found = found or {}
        self.name = type(self).__name__
        super().__init__(what)

    def __str__(self) -> str:
        return _paragraph(self.where, self.what, self.why, self.fix)

    def as_dict(self) -> dict[str, Any]:
        """Returns the same facts for ``--json`` output, with what was found."""
        return {
            **self.found,
            "error": self.name,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }


def cause(error: BaseException) -> str:
    """Says in one line what another library raised; some put a whole tensor into their message."""
    return shorten(f"{type(error).__name__}: {error}", 600, placeholder=" ...")


def _paragraph(where: str | None, what: str, why: str | None, fix: str | None) -> str:
    place = f"{where}: " if where else ""
    # A remedy may begin with a command, which stays as it is typed.
    sentences = (f"{place}{what}", _capitalized(why or ""), fix)
    return " ".join(_sentence(text) for text in sentences if text)


def _capitalized(text: str) -> str:
    # Names such as int8_sq and paths stay as they are; only plain words begin a sentence.
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


@dataclass(frozen=True)
class Mistake:
    """One of the mistakes that a command found in what it was given.

    Attributes:
        what: As of a :class:`PipelineError`, and so are the others.
        where: The file with line and column, or the option.
        key: The dotted key of the recipe that it concerns; None where it concerns none.
        why: The cause.
        fix: What to do about it.
    """

    what: str
    where: str | None = None
    key: str | None = None
    why: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        return _paragraph(self.where, self.what, self.why, self.fix)


class UsageError(PipelineError):
    """The command line or a request is wrong.

    Attributes:
        mistakes: All that was found, where it is more than the error itself.
    """

    exit_code = 2
    mistakes: Sequence[Mistake] = ()

    @property
    def all(self) -> Sequence[Mistake]:
        """Every mistake; the error itself where it is the only one."""
        return self.mistakes or (Mistake(self.what, self.where, None, self.why, self.fix),)

    @classmethod
    def of(cls, mistakes: Sequence[Mistake]) -> UsageError:
        """Makes one error of several mistakes, of which the first gives its fields.

        Args:
            mistakes: At least one, in the order to show them.
        """
        first = mistakes[0]
        error = cls(first.what, where=first.where, why=first.why, fix=first.fix)
        error.mistakes = tuple(mistakes)
        return error

    def __str__(self) -> str:
        """Returns one paragraph, or the count and a paragraph for each mistake."""
        if len(self.mistakes) < 2:
            return super().__str__()
        return "\n".join((f"{len(self.mistakes)} mistakes:", *map(str, self.mistakes)))

    def as_dict(self) -> dict[str, Any]:
        """Returns the first mistake, and all of them as ``errors``."""
        return {**super().as_dict(), "errors": [asdict(mistake) for mistake in self.all]}


class RecipeError(UsageError):
    """The recipe is wrong; ``where`` names file, line and key."""


def check_all(checks: Iterable[Callable[[], object]]) -> None:
    """Makes several checks of a recipe, so that the mistakes of all of them are told together.

    Raises:
        RecipeError: At least one of them raised one.
        PipelineError: That of the first check that raised another, where no mistake was found.
    """
    found: list[RecipeError] = []
    for check in checks:
        try:
            check()
        except RecipeError as error:  # noqa: PERF203  each is to be told
            found.append(error)
        except PipelineError:
            if not found:
                raise
    if len(found) == 1:
        raise found[0]
    if found:
        raise RecipeError.of([mistake for error in found for mistake in error.all])


class UnsupportedError(PipelineError):
    """A combination that cannot work, found before any work is done."""

    exit_code = 3


class MissingDependencyError(UnsupportedError):
    """An optional package is not installed."""


class QualityGateError(PipelineError):
    """A quality gate of the written checkpoint or of its engine is not open."""

    exit_code = 4


class StageError(PipelineError):
    """A stage failed."""

    exit_code = 5


class SourceError(StageError):
    """The model to read is not usable."""


class CheckpointError(StageError):
    """A TensorRT-LLM checkpoint breaks its contract."""


class CompileError(StageError):
    """The target could not compile the checkpoint."""


class RepositoryError(StageError):
    """The Triton repository is wrong or was changed."""


class StoreError(StageError):
    """The artifact store cannot be read or written."""


class ServerError(PipelineError):
    """Triton did not start, answer or stop."""

    exit_code = 6


class VerificationError(ServerError):
    """The server answered, wrongly."""
