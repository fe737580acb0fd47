"""The command ``lm-eval``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.options import (
    BuildDirOption,
    Credentials,
    DirectoryOption,
    Output,
    RecipeArgument,
    SetOption,
)
from pipeline.errors import UsageError

SOURCE, CHECKPOINT = "source", "checkpoint"


def lm_eval(
    *,
    recipe: RecipeArgument,
    model: Annotated[
        str,
        typer.Option(
            metavar="source|checkpoint|URL",
            help="The source model, the written checkpoint, or a server's gRPC address.",
        ),
    ],
    tasks: Annotated[str, typer.Option(help="lm-eval's tasks, with commas between them.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task, at most.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="A folder with tasks of your own.")
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(help="The Python with lm-eval; without it the one of `make eval`."),
    ] = None,
    overrides: SetOption = None,
    directory: DirectoryOption = None,
    build_dir: BuildDirOption = Path("build"),
    timeout: Annotated[float, typer.Option(help="Seconds for one request to a server.")] = 300.0,
    credentials: Credentials,
    output: Output,
) -> None:
    """Run EleutherAI's lm-eval over the source, the checkpoint or a served endpoint."""
    from pipeline import api
    from pipeline.cli.console import open_recipe, print_json, progress_for
    from pipeline.harness.job import Job
    from pipeline.harness.launch import evaluate, find_python
    from pipeline.models.facts import ModelFacts

    headers = credentials.headers
    url = _url(model, credentials, timeout)
    names = tuple(name for name in (part.strip() for part in tasks.split(",")) if name)
    if not names:
        raise UsageError("--tasks names no task", fix="Name one, such as --tasks hellaswag")
    loaded = open_recipe(recipe, overrides, directory, quiet=output.quiet)
    found_python = find_python(python)
    until = "quantize" if model == CHECKPOINT else "source"
    made = api.run(
        loaded, build_dir, until=until, progress=progress_for(output.json, output.verbosity)
    ).stages
    source, checkpoint = (
        made[name].artifact if name in made else None for name in ("source", "quantize")
    )
    assert source is not None
    longest = ModelFacts.from_directory(source.path).max_position_embeddings
    engine = loaded.compile
    job = Job(
        source=str(source.path),
        checkpoint=str(checkpoint.path) if checkpoint else None,
        url=url,
        trust_remote_code=loaded.model.trust_remote_code,
        tasks=names,
        limit=limit,
        num_fewshot=num_fewshot,
        include_path=str(include_path) if include_path else None,
        longest_input=min(engine.max_input_len, longest) if url else longest,
        longest=min(engine.max_seq_len, longest) if url else longest,
        timeout=timeout,
        tls=_tls(credentials),
        headers=headers,
    )
    found = evaluate(job, found_python)
    if output.json:
        print_json({"recipe": loaded.name, "model": model, **found})
    else:
        _print(found)


def _url(model: str, credentials: Credentials, timeout: float) -> str | None:
    """The server's address; it and how to talk to it are checked before any work."""
    from pipeline.client_errors import client_errors

    if model in (SOURCE, CHECKPOINT):
        if any(asdict(credentials).values()):
            raise UsageError(
                f"--model {model} is computed here, and connects to nothing",
                fix="Leave --header and the TLS options out",
            )
        return None
    if ":" not in model:
        raise UsageError(
            f"--model {model} is neither source, nor checkpoint, nor an address",
            fix="Write an address with its port, such as --model localhost:8001",
        )
    with client_errors():
        from trtllm_client import Client

        Client(model, timeout=timeout, tls=credentials.tls, headers=credentials.headers).close()
    return model


def _tls(credentials: Credentials) -> dict[str, str]:
    """The fields of the client's ``Tls``, with paths that another folder can use too."""
    tls = credentials.tls
    found = asdict(tls) if tls else {}
    return {
        name: str(value.absolute() if isinstance(value, Path) else value)
        for name, value in found.items()
        if value is not None
    }


def _print(found: dict[str, Any]) -> None:
    """A line for each metric of each task, with lm-eval's own standard error."""
    from pipeline.tables import print_table

    rows = [
        [task, name, kind, value, metrics.get(f"{name}_stderr,{kind}", "")]
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        for name, _, kind in [metric.partition(",")]
        if kind and isinstance(value, int | float) and not name.endswith("_stderr")
    ]
    print_table(["task", "metric", "filter", "value", "standard error"], rows)
