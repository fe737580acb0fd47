"""The console script: the commands put together, and what becomes of errors."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO

import typer

from pipeline import __version__
from pipeline.commands import build, server, store
from pipeline.commands.groups import grouped
from pipeline.commands.options import DebugOption, Invocation
from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

NAME = "trtllm-pipeline"
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    help="From a Hugging Face checkpoint to a quantized, compiled and tested Triton repository.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(help="The artifact store.", no_args_is_help=True)

for command in (
    build.run,
    build.plan,
    server.serve,
    server.generate,
    server.verify,
    server.bench,
    build.compare,
    build.doctor,
):
    app.command()(grouped(command))
store_app.command("list")(grouped(store.list_))
store_app.command("verify")(grouped(store.verify))
store_app.command("prune")(grouped(store.prune))
app.add_typer(store_app, name="store")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Options of every command."""
    del version, debug  # their callbacks did what they are for


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends like Ctrl-C, so that whatever was opened is closed."""


def main() -> NoReturn:
    """The console script: turns errors into one paragraph and an exit code."""
    _open_standard_streams()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    arguments = sys.argv[1:]
    invocation = Invocation(debug=bool(os.environ.get("TRTLLM_PIPELINE_DEBUG")))
    try:
        code = _invoke(arguments, invocation)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        with contextlib.suppress(OSError):
            print("terminated" if terminated else "interrupted", file=sys.stderr)
        code = _TERMINATED if terminated else _INTERRUPTED
    except PipelineError as error:
        code = _failed(error, invocation)
    except typer.TyperException as error:
        # The parser stopped before it came to the options, so their words are all there is.
        invocation.json = "--json" in _before_dashes(arguments)
        code = _misused(error, invocation)
    except Exception as error:  # noqa: BLE001 -- it is shown, as a defect
        lost = _unflushed(sys.stdout) or _unflushed(sys.stderr)
        # The reader of our output may have gone away (for example `| head`); nothing is wrong.
        gone = isinstance(lost, BrokenPipeError)
        code = 0 if gone else _failed(_unwritten(lost) if lost else _defect(error), invocation)
    _discard_unwritten()
    sys.exit(code)


def _invoke(arguments: Sequence[str], invocation: Invocation) -> int:
    # What Typer's own main() does without its handling of errors, which would end the process
    # before they got here.
    program = typer.main.get_command(app)
    try:
        with program.make_context(NAME, list(arguments), obj=invocation) as context:
            program.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _failed(error: PipelineError, invocation: Invocation) -> int:
    # Not at the top: what prints tables imports every stage, and --help needs none.
    from pipeline.console import print_error

    if invocation.debug:
        traceback.print_exception(error)
    with contextlib.suppress(OSError):  # the exit code says it where nothing can be written
        print_error(error, json_output=invocation.json)
    return error.exit_code


def _misused(error: typer.TyperException, invocation: Invocation) -> int:
    message = " ".join(error.format_message().split())
    if not message:  # the command was given nothing, and its help is on the screen
        return error.exit_code
    context: typer.Context | None = getattr(error, "ctx", None)
    place = context.command_path if context else NAME
    what = message[:1].lower() + message[1:].rstrip(".")
    return _failed(UsageError(what, where=place, fix=f"See {place} --help"), invocation)


def _unwritten(error: OSError) -> PipelineError:
    return PipelineError("the output cannot be written", why=error.strerror)


def _defect(error: Exception) -> PipelineError:
    failure = PipelineError(
        f"unexpected {type(error).__name__}: {error}",
        fix="This is a defect: run again with --debug and report the traceback",
    )
    failure.__cause__ = error
    return failure


def _before_dashes(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _open_standard_streams() -> None:
    # The next file that is opened would get the number of a stream that was closed.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows no emoji shows a question mark; the text goes on.
        sys.stdout.reconfigure(errors="replace")


def _unflushed(stream: TextIO) -> OSError | None:
    """What keeps a stream from being written; a flush that failed fails again."""
    try:
        stream.flush()
    except OSError as error:
        return error
    return None


def _discard_unwritten() -> None:
    # Python would complain about it once more at its end, with an exit code of its own.
    for stream in (sys.stdout, sys.stderr):
        if _unflushed(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated
