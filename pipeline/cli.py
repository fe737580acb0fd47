"""The command line: parse, call, print. Everything it does is in the modules it calls."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import __version__
from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

app = typer.Typer(
    name="trtllm-pipeline",
    help="From a Hugging Face checkpoint to a quantized, compiled and tested Triton repository.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(help="The artifact store.", no_args_is_help=True)
app.add_typer(store_app, name="store")

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, e.g. compile.max_seq_len=256."
    ),
]
BuildDirOption = Annotated[
    Path, typer.Option("--build-dir", help="Where the store and the outputs go.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="gRPC address of a running server, e.g. localhost:8001.")
]
RepositoryOption = Annotated[
    Path | None,
    typer.Option("--repository", help="Start a server on this repository instead of using --url."),
]


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


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    build_dir: BuildDirOption = Path("build"),
    force: Annotated[
        list[str] | None,
        typer.Option("--force", metavar="STAGE", help="Run a stage even if cached."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Run a recipe: every stage that is not cached, then deploy repository and report."""
    from pipeline.console import print_json, progress_for, stage_dict, stage_line
    from pipeline.plan import PlannedStage, stages_for
    from pipeline.run import BuildDir, run_recipe

    loaded = _recipe(recipe, overrides)
    known = [stage.name for stage in stages_for(loaded)]
    for name in [*(force or []), *([until] if until else [])]:
        if name not in known:
            raise UsageError(f"there is no stage {name}", fix=f"Stages: {', '.join(known)}")
    lines = []

    def on_stage(line: PlannedStage, seconds: float) -> None:
        lines.append(stage_dict(line, seconds))
        if not json_output:
            print(stage_line(line, seconds), flush=True)

    result = run_recipe(
        loaded,
        BuildDir(build_dir),
        progress_for(json_output),
        force=frozenset(force or ()),
        until=until,
        on_stage=on_stage,
    )
    if json_output:
        print_json({"recipe": loaded.name, "outputs": str(result.outputs), "stages": lines})
        return
    for name in ("repository", "report"):
        if name in result.stages:
            shown = "report.html" if name == "report" else name
            print(f"{name + ':':<12}{result.outputs / shown}")


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    build_dir: BuildDirOption = Path("build"),
    json_output: JsonOption = False,
) -> None:
    """Show what a run would do, and why, without doing it."""
    from pipeline.console import print_json, stage_dict, stage_line
    from pipeline.plan import build_plan, read_lock
    from pipeline.preflight import check_model
    from pipeline.run import BuildDir
    from pipeline.stages.source import local_directory

    loaded = _recipe(recipe, overrides)
    build = BuildDir(build_dir)
    directory = local_directory(loaded)
    if directory:
        check_model(loaded, directory)
    store = build.store
    planned = build_plan(loaded, store, read_lock(build.outputs(loaded) / "lock.json"))
    store.memo.save()
    if json_output:
        print_json([stage_dict(line) for line in planned])
    else:
        print("\n".join(stage_line(line) for line in planned))


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(help="A repository, e.g. build/<name>/repository.")],
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless asked.")] = (
        "127.0.0.1"
    ),
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 picks a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Metrics port; 0 picks a free one.")] = 8002,
    log: Annotated[Path, typer.Option(help="The server's log.")] = Path("triton.log"),
    json_output: JsonOption = False,
) -> None:
    """Serve a repository with Triton until interrupted, after checking every file of it."""
    from pipeline.console import print_json
    from pipeline.serving import serve_forever

    ports = {"grpc_port": grpc_port, "http_port": http_port, "metrics_port": metrics_port}

    def ready(addresses: dict[str, str], seconds: float) -> None:
        if json_output:
            print_json({**addresses, "ready_seconds": round(seconds, 3)})
        else:
            shown = ", ".join(f"{name} {address}" for name, address in addresses.items())
            print(f"ready in {seconds:.1f} s: {shown}; stop with Ctrl-C", flush=True)

    serve_forever(repository, host=host, log=log, on_ready=ready, **ports)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    url: UrlOption = None,
    repository: RepositoryOption = None,
    model: Annotated[str, typer.Option(help="tensorrt_llm_bls or ensemble.")] = "tensorrt_llm_bls",
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate, at most.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="0 or absent is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from this much probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this text; repeatable.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for the whole answer.")] = 120.0,
    tls_root: Annotated[Path | None, typer.Option(help="PEM of the authority to trust.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of the client certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of the client's key.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Stream a completion to the terminal."""
    from pipeline.client import Client, GenerateRequest, Tls
    from pipeline.serving import reachable

    request = GenerateRequest(
        prompt=sys.stdin.read() if prompt == "-" else prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_words=tuple(stop or ()),
    )
    tls = Tls(tls_root, tls_cert, tls_key) if tls_root or tls_cert or tls_key else None
    pieces = []
    with (
        reachable(url, repository) as address,
        Client(address, model=model, timeout=timeout, tls=tls) as client,
    ):
        started = time.monotonic()
        with client.stream(request) as stream:
            for chunk in stream:
                pieces.append(chunk.text)
                if not json_output:
                    print(chunk.text, end="", flush=True)
        seconds = time.monotonic() - started
    if json_output:
        from pipeline.console import print_json

        print_json({"text": "".join(pieces), "pieces": len(pieces), "seconds": round(seconds, 3)})
    else:
        print()


@app.command()
def verify(
    url: UrlOption = None,
    repository: RepositoryOption = None,
    model: Annotated[str, typer.Option(help="tensorrt_llm_bls or ensemble.")] = "tensorrt_llm_bls",
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML here.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Run the conformance checks against a server, started here or anywhere."""
    from pipeline.console import print_json
    from pipeline.serving import reachable
    from pipeline.verify import render_table, run_conformance, to_json, to_junit

    with reachable(url, repository) as address:
        report = run_conformance(address, model=model)
    if junit:
        junit.write_text(to_junit(report), encoding="utf-8")
    if json_output:
        print_json(to_json(report))
    else:
        render_table(report)
    report.raise_for_failures()


@app.command()
def bench(
    url: UrlOption = None,
    repository: RepositoryOption = None,
    model: Annotated[str, typer.Option(help="tensorrt_llm_bls or ensemble.")] = "tensorrt_llm_bls",
    concurrency: Annotated[
        list[int] | None, typer.Option(help="Streams kept open together; repeatable.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests per measurement.")] = 16,
    output_tokens: Annotated[int, typer.Option(help="Tokens per request.")] = 32,
    json_output: JsonOption = False,
) -> None:
    """Measure throughput and latency of a running server."""
    from pipeline.bench import measure, render_table
    from pipeline.console import print_json
    from pipeline.serving import reachable

    with reachable(url, repository) as address:
        results = measure(
            address,
            model=model,
            concurrency=concurrency or [1, 8],
            requests=requests,
            output_tokens=output_tokens,
        )
    if json_output:
        print_json(results)
    else:
        render_table(results)


@app.command()
def compare(
    reports: Annotated[
        list[Path], typer.Argument(help="report.json files, or the folders that hold them.")
    ],
    json_output: JsonOption = False,
) -> None:
    """Put the reports of several recipes side by side."""
    from pipeline.compare import COLUMNS, comparison
    from pipeline.console import print_json, print_table

    rows = comparison(reports)
    if json_output:
        print_json(rows)
    else:
        print_table(list(COLUMNS), [[row[name] for name in COLUMNS] for row in rows])


@app.command()
def doctor(json_output: JsonOption = False) -> None:
    """Say what is installed here, what can run, and what to do about the rest."""
    from dataclasses import asdict

    from pipeline.console import print_json
    from pipeline.toolchain import diagnose

    findings = diagnose()
    if json_output:
        print_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        mark = "ok " if finding.ok else "-- "
        advice = "" if finding.ok else f"  {finding.advice}"
        print(f"{mark} {finding.name:<16} {finding.value:<14}{advice}".rstrip())


@store_app.command("list")
def store_list(build_dir: BuildDirOption = Path("build"), json_output: JsonOption = False) -> None:
    """List the artifacts with their keys and sizes."""
    from pipeline.console import print_json, print_table
    from pipeline.retention import inventory
    from pipeline.run import BuildDir

    rows = inventory(BuildDir(build_dir).store)
    if json_output:
        print_json(rows)
    else:
        columns = ["stage", "key", "created", "MiB", "seconds"]
        shown = [
            [row["stage"], row["key"][:12], row["created"], row["bytes"] / 2**20, row["seconds"]]
            for row in rows
        ]
        print_table(columns, shown)


@store_app.command("verify")
def store_verify(
    build_dir: BuildDirOption = Path("build"), json_output: JsonOption = False
) -> None:
    """Read every byte of every artifact and compare it with its manifest."""
    from pipeline.console import print_json
    from pipeline.errors import StoreError
    from pipeline.run import BuildDir

    store = BuildDir(build_dir).store
    damaged = store.verify()
    if json_output:
        print_json([{"path": str(d.path), "problems": d.problems} for d in damaged])
    else:
        print(f"{len(store.artifacts()) - len(damaged)} artifacts are whole")
    if damaged:
        raise StoreError(
            f"{len(damaged)} damaged artifact(s): {damaged[0].problems[0]}",
            where=str(damaged[0].path),
            fix="Run the recipe again, which rebuilds it, or remove it with store prune",
        )


@store_app.command("prune")
def store_prune(
    build_dir: BuildDirOption = Path("build"),
    keep: Annotated[bool, typer.Option(help="Keep what the last run of each recipe uses.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Remove artifacts that no recipe's last run uses, and damaged ones."""
    from pipeline.console import print_json
    from pipeline.retention import prune
    from pipeline.run import BuildDir

    removed = prune(BuildDir(build_dir), keep=keep, dry_run=dry_run)
    if json_output:
        print_json([str(path) for path in removed])
    else:
        verb = "would remove" if dry_run else "removed"
        print("\n".join([*(f"{verb} {path}" for path in removed), f"{len(removed)} artifact(s)"]))


def _recipe(path: Path, overrides: list[str] | None) -> Recipe:
    from pipeline.recipe_file import load_recipe

    return load_recipe(path, overrides or ())


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
        _print_error(error, json_output)
        sys.exit(error.exit_code)
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
        _print_error(failure, json_output)
        sys.exit(failure.exit_code)


def _print_error(error: PipelineError, json_output: bool) -> None:
    if json_output:
        print(json.dumps(error.as_dict(), ensure_ascii=False))
    else:
        print(f"error: {error}", file=sys.stderr)
