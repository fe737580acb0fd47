"""The command ``init``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import complete
from pipeline.cli.options import Output, new_file
from pipeline.errors import UsageError
from pipeline.formats import FORMATS

if TYPE_CHECKING:
    from pipeline.scaffold.choices import Asked
    from pipeline.scaffold.draft import Draft

EXPLAINED = """\
init writes a recipe for a model, with a comment on every key, that plan and run take as it is:

  trtllm-pipeline init MODEL_DIR                        # a folder with config.json
  trtllm-pipeline init Qwen/Qwen2.5-7B-Instruct         # from the Hub; config.json alone is fetched
  trtllm-pipeline init MODEL --gpu L4                   # for a GPU; without it, for this CPU
  trtllm-pipeline init MODEL --text texts.jsonl         # calibrate and measure on your own texts

It asks nothing. Format, precision and sizes follow from the model's config.json and the memory of
the machine, and the file says why; see trtllm-pipeline init --help for the options."""


def init(
    *,
    model: Annotated[
        str | None, typer.Argument(help="A folder with config.json, or a Hub id.")
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F",
            help=f"One of {', '.join(FORMATS)}; chosen by default.",
            autocompletion=complete.formats,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="T",
            help="One of {targets}; the CPU's by default.",
            autocompletion=complete.targets,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="G", help="The GPU the engine is for, e.g. L4."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Your texts, .txt or .jsonl; the last third is held out unless --heldout.",
        ),
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option("--heldout", metavar="FILE", help="Other texts of yours, to measure on."),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="The recipe; by default NAME.yaml."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files that are there already.")
    ] = False,
    output: Output,
) -> None:
    """Write a commented recipe for a model, which plan and run take as it is."""
    if model is None:
        if output.json:
            raise UsageError(
                "init needs a model", fix="Name a folder with config.json, or a Hub id"
            )
        print(EXPLAINED)
        raise typer.Exit(2)
    if heldout and not text:
        raise UsageError("--heldout needs --text", fix="Name the texts to calibrate on with --text")
    from pipeline.cli.console import print_json, show_notices
    from pipeline.scaffold.draft import draft

    show_notices()
    new_file(output_file)
    asked = _asked(model, format_name, target, gpu)
    made = draft(asked, output_file, text, heldout)
    _write(made, force)
    if output.json:
        print_json(made.as_dict())
        return
    values, texts = made.choices.values, ("quantize.calibration.text", "evaluate.text")
    for key, reason in made.choices.reasons.items():
        if key not in texts and not output.quiet:
            print(f"{key}: {values[key]}  ({reason})")
    if output.quiet:
        return
    print("\nwritten: " + ", ".join(map(str, (made.path, *made.files))))
    if text is None:
        print("texts:   a public-domain book as a stopgap; --text takes yours, which numbers need")
    print(f"next:    trtllm-pipeline plan {shlex.quote(str(made.path))}")


def _asked(model: str, format_name: str | None, target: str | None, gpu: str | None) -> Asked:
    from pipeline.formats import canonical_format
    from pipeline.recipe.compile import CompileSection
    from pipeline.recipe.docs import recipe_keys
    from pipeline.scaffold.choices import Asked
    from pipeline.targets import TARGETS

    (of_gpus,) = (key.targets for key in recipe_keys() if key.name == "compile.gpu")
    if target is not None and target not in TARGETS:
        raise UsageError(f"there is no target {target}", fix=f"Targets: {', '.join(TARGETS)}")
    if gpu and target is not None and target not in of_gpus:
        raise UsageError(
            f"the target {target} is for no GPU",
            fix=f"Leave --gpu out, or choose --target {' or '.join(of_gpus)}",
        )
    chosen = target or (of_gpus[0] if gpu else CompileSection().target)
    try:
        form = None if format_name is None else canonical_format(format_name.replace("-", "_"))
    except ValueError as error:
        raise UsageError(str(error), where="--format") from error
    row = next((row for row in FORMATS.values() if row.name == form), None)
    if form is not None and row is None:
        raise UsageError(f"there is no format {format_name}", fix=f"Formats: {', '.join(FORMATS)}")
    return Asked(model, row.name if row else None, chosen, gpu)


def _write(made: Draft, force: bool) -> None:
    """Writes the recipe last, when all that it names is there."""
    from pipeline.store.files import write_atomically

    files = {**made.files, made.path: made.text.encode()}
    for path, data in files.items():
        if not force and path.exists() and not _may_be_replaced(path, data, made):
            raise UsageError(
                "the file is there already",
                where=str(path),
                fix="Give --force to overwrite it, or another --output",
            )
    try:
        for path, data in files.items():
            write_atomically(path, data)
    except OSError as error:
        raise UsageError(
            "the recipe cannot be written",
            where=error.filename or str(made.path),
            why=error.strerror,
            fix="Name a file in a folder that this user may write to",
        ) from error


def _may_be_replaced(path: Path, data: bytes, made: Draft) -> bool:
    """Whether nobody's work is lost: a text of the same bytes, or a schema of any version."""
    from pipeline.recipe.docs import TITLE

    if path == made.path or not path.is_file():
        return False
    there = path.read_bytes()
    return there == data or (path == made.schema and TITLE.encode() in there)
