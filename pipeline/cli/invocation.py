"""How much a command says: what its flags note while they are parsed, and the lines of its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from logging import LogRecord

LOGGED = "pipeline"
"""The logger that -v and -q are about; those of other libraries stay as they are."""


@dataclass
class Invocation:
    """How results and errors are to be shown; each option about it notes it here.

    Attributes:
        json: As JSON on stdout.
        debug: With a traceback.
        verbosity: -1 leaves all out but results, warnings and errors; 1 adds keys, paths and a log.
    """

    json: bool = False
    debug: bool = False
    verbosity: int = 0


def invocation(context: typer.Context) -> Invocation:
    """Returns what the options of this command line have noted so far."""
    return context.ensure_object(Invocation)


def note(context: typer.Context, parameter: typer.CallbackParam, value: bool) -> bool:
    """Copies a flag to the field of the :class:`Invocation` that has its name."""
    if value:
        setattr(invocation(context), str(parameter.name), True)
    return value


def _verbose(context: typer.Context, value: bool) -> bool:
    return _turn(context, 1, given=value)


def _quiet(context: typer.Context, value: bool) -> bool:
    return _turn(context, -1, given=value)


def _turn(context: typer.Context, verbosity: int, *, given: bool) -> bool:
    """Notes the flag; returns whether it counts, also where it stands in front of the command."""
    noted = invocation(context)
    if given:
        if noted.verbosity == -verbosity:
            raise UsageError("--verbose and --quiet exclude each other", fix="Give one of them")
        if noted.verbosity != verbosity:
            noted.verbosity = verbosity
            _log(verbosity)
    return noted.verbosity == verbosity


def _log(verbosity: int) -> None:
    """Shows the project's own log from INFO on, or from ERROR on."""
    import logging
    import sys

    class Stderr(logging.Handler):
        def emit(self, record: LogRecord) -> None:
            # Looked up now: bars put a stream of their own in its place while they are drawn.
            print(self.format(record), file=sys.stderr, flush=True)

    logger = logging.getLogger(LOGGED)
    logger.setLevel(logging.INFO if verbosity > 0 else logging.ERROR)
    if verbosity > 0:
        handler = Stderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False


PANEL = "Output"

VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Say more: whole keys, paths, and the log on stderr.",
        callback=_verbose,
        is_eager=True,
        rich_help_panel=PANEL,
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Say less: the result, warnings and errors alone.",
        callback=_quiet,
        is_eager=True,
        rich_help_panel=PANEL,
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show tracebacks.", callback=note, is_eager=True, rich_help_panel=PANEL
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON to stdout.", callback=note, is_eager=True, rich_help_panel=PANEL
    ),
]


@dataclass(frozen=True)
class Output:
    """What every command prints, and how.

    Attributes:
        json: One JSON document instead of text.
        verbose: More than usual; given in front of the command or behind it.
        quiet: Less than usual; likewise.
        debug: Tracebacks instead of the paragraph for people.
    """

    json: JsonOption = False
    verbose: VerboseOption = False
    quiet: QuietOption = False
    debug: DebugOption = False

    @property
    def verbosity(self) -> int:
        """As :attr:`Invocation.verbosity`."""
        return int(self.verbose) - int(self.quiet)
