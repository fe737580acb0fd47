"""The console script: the commands put together, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from pipeline import __version__
from pipeline.commands import build, server, store
from pipeline.errors import PipelineError

app = typer.Typer(
    name="trtllm-pipeline",
    help="From a Hugging Face checkpoint to a quantized, compiled and tested Triton repository.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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
    app.command()(command)
store_app.command("list")(store.list_)
store_app.command("verify")(store.verify)
store_app.command("prune")(store.prune)
app.add_typer(store_app, name="store")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options of every command."""
    del debug  # read from the arguments by main(), because it may follow the command too
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """The console script: turns errors into one paragraph and an exit code."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or bool(os.environ.get("TRTLLM_PIPELINE_DEBUG"))
    json_output = "--json" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"])
    except PipelineError as error:
        if debug:
            raise
        _fail(error, json_output=json_output)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (for example `| head`); nothing is wrong.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        failure = PipelineError(
            f"unexpected {type(error).__name__}: {error}",
            fix="This is a defect: run again with --debug and report the traceback",
        )
        _fail(failure, json_output=json_output)


def _fail(error: PipelineError, *, json_output: bool) -> NoReturn:
    # Not at the top: what prints tables imports every stage, and --help needs none.
    from pipeline.console import print_error

    print_error(error, json_output=json_output)
    sys.exit(error.exit_code)
