"""The console script: the commands put together, and what becomes of errors."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline._version import __version__
from pipeline.cli import (
    bench,
    capacity,
    certificates,
    compare,
    doctor,
    gateway,
    generate,
    init,
    lm_eval,
    manifests,
    plan,
    run,
    schema,
    serve,
    sign,
    store,
    targets,
    verify,
)
from pipeline.cli.groups import grouped
from pipeline.cli.help import PROGRAM, Command, Group
from pipeline.cli.invocation import DebugOption, Invocation, QuietOption, VerboseOption
from pipeline.cli.streams import OutputLostError, discard_unwritten, guard_streams
from pipeline.client_errors import client_errors
from pipeline.errors import PipelineError, UsageError
from pipeline.reading.files import shortened

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

# What is the machine's affair and not a defect of this program.
_SURROUNDINGS = frozenset(
    (
        *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EMFILE),
    )
)
_COMPLETING = f"_{PROGRAM}_COMPLETE".replace("-", "_").upper()
"""The variable with which a shell asks for completions, as Typer's scripts name it."""
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    help="From a Hugging Face checkpoint to a quantized, compiled and tested Triton repository.",
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(cls=Group, help="The artifact store.", no_args_is_help=True)

for command in (
    init.init,
    run.run,
    plan.plan,
    serve.serve,
    gateway.gateway,
    generate.generate,
    verify.verify,
    bench.bench,
    compare.compare,
    capacity.capacity,
    lm_eval.lm_eval,
    manifests.manifests,
    certificates.certificates,
    sign.sign,
    targets.targets,
    doctor.doctor,
    schema.schema,
):
    app.command(cls=Command)(grouped(command))
store_app.command("list", cls=Command)(grouped(store.list_))
store_app.command("verify", cls=Command)(grouped(store.verify))
store_app.command("prune", cls=Command)(grouped(store.prune))
store_app.command("publish", cls=Command)(grouped(store.publish))
app.add_typer(store_app, name="store")


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Options of every command."""
    del version, verbose, quiet, debug  # their callbacks did what they are for


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends like Ctrl-C, so that whatever was opened is closed."""


def main() -> NoReturn:
    """Runs the command line: turns errors into one paragraph and an exit code."""
    guard_streams()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    arguments = sys.argv[1:]
    invocation = Invocation(debug=bool(os.environ.get("TRTLLM_PIPELINE_DEBUG")))
    try:
        code = _invoke(arguments, invocation)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        with contextlib.suppress(OutputLostError):
            print("terminated" if terminated else "interrupted", file=sys.stderr)
        code = _TERMINATED if terminated else _INTERRUPTED
    except OutputLostError as error:
        code = 0 if error.reader_gone else _failed(error, invocation)
    except PipelineError as error:
        if isinstance(error, UsageError) and "--json" in _before_dashes(arguments):
            invocation.json = True  # an option before it may have been refused
        code = _failed(error, invocation)
    except typer.TyperException as error:
        # The parser stopped before it came to the options, so their words are all there is.
        invocation.json = "--json" in _before_dashes(arguments)
        code = _misused(error, invocation)
    except Exception as error:  # noqa: BLE001 -- it is shown, as a defect
        code = _failed(_defect(error), invocation)
    discard_unwritten()
    sys.exit(code)


def _invoke(arguments: Sequence[str], invocation: Invocation) -> int:
    # What Typer's own main() does without its handling of errors, which would end the process
    # before they got here.
    program = typer.main.get_command(app)
    if os.environ.get(_COMPLETING):
        program.main(prog_name=PROGRAM)  # prints what a shell may offer, and ends the process
    try:
        with (
            client_errors(),
            program.make_context(PROGRAM, list(arguments), obj=invocation) as context,
        ):
            program.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _failed(error: PipelineError, invocation: Invocation) -> int:
    # Not at the top: what prints tables imports every stage, and --help needs none.
    from pipeline.cli.console import print_error

    try:
        if invocation.debug:
            traceback.print_exception(error)
        print_error(error, json_output=invocation.json)
    except OutputLostError:
        with contextlib.suppress(OutputLostError):  # the exit code alone has to say it then
            print_error(error, json_output=False)
    return error.exit_code


def _misused(error: typer.TyperException, invocation: Invocation) -> int:
    message = " ".join(error.format_message().split())
    if not message:  # the command was given nothing, and its help is on the screen
        return error.exit_code
    context: typer.Context | None = getattr(error, "ctx", None)
    place = context.command_path if context else PROGRAM
    what = message[:1].lower() + message[1:].rstrip(".")
    return _failed(UsageError(what, where=place, fix=f"See {place} --help"), invocation)


def _defect(error: Exception) -> PipelineError:
    if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
        failure = PipelineError(
            "a file or a folder cannot be used",
            where=None if error.filename is None else shortened(error.filename),
            why=error.strerror,
            fix="Correct the path or its permissions, or free space; --debug shows what wanted it",
        )
        failure.__cause__ = error
        return failure
    failure = PipelineError(
        f"unexpected {type(error).__name__}: {error}",
        fix="This is a defect: run again with --debug and report the traceback",
    )
    failure.__cause__ = error
    return failure


def _before_dashes(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated
