"""The command ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import complete
from pipeline.cli.options import Connection, Output, new_file, served_path

if TYPE_CHECKING:
    from pipeline.verify import CheckResult


def verify(
    *,
    junit: Annotated[
        Path | None, typer.Option(help="Also write JUnit XML here.", callback=new_file)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="The model's tokenizer, for --url: build/NAME, a repository or a model directory.",
            callback=served_path,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHECK,...",
            help="Run these checks only; repeatable. A report names them, and so does a wrong one.",
            autocompletion=complete.checks,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHECK,...",
            help="Leave these checks out; repeatable.",
            autocompletion=complete.checks,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Prompts: one a line, or .jsonl with {"prompt": ...} or {"messages": [...]}.',
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="How close log probabilities of two tokens are where texts may part; by default "
            "0.25 with TensorRT-LLM's backend, and texts must be equal with any other."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Demand equal texts of any server.")
    ] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Run the thorough checks too, which take a minute or two more."),
    ] = False,
    http: Annotated[
        str,
        typer.Option(metavar="URL", help="The server's HTTP address, for --url and --all."),
    ] = "",
    metrics: Annotated[
        str,
        typer.Option(metavar="URL", help="The address of its metrics, for --url and --all."),
    ] = "",
    list_: Annotated[
        bool,
        typer.Option("--list", help="Print what each check asks and what must be, and end."),
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="With --list: as docs/conformance.md.", hidden=True)
    ] = False,
    server: Connection,
    output: Output,
) -> None:
    """Run the conformance checks against a server, started here or anywhere."""
    from pipeline.cli.conformance import junit_of, options_of
    from pipeline.cli.console import print_json, progress_for
    from pipeline.errors import VerificationError
    from pipeline.source.probes import find_probes, known_probes
    from pipeline.tables import tally
    from pipeline.verify import print_report, run_conformance, to_json
    from pipeline.verify.listing import listed, page, print_list

    if list_:
        if markdown:
            print(page(), end="")
        elif output.json:
            print_json({"checks": listed()})
        else:
            print_list()
        return
    options = options_of(
        only,
        skip,
        prompts,
        tolerance,
        strict=strict,
        patience=server.timeout,
        thorough=everything,
    )
    probes = known_probes(server.repository) if server.repository else None
    if tokenizer is not None:
        probes = find_probes(tokenizer)
    with junit_of(junit, server) as file, server.addresses() as address:
        with progress_for(output.json, output.verbosity).task(
            "conformance checks", options.count
        ) as task:

            def note(result: CheckResult) -> None:
                file.note(result)
                task.advance()

            report = run_conformance(
                address.grpc,
                http=http or address.http,
                metrics=metrics or address.metrics,
                model=server.model,
                tls=server.tls,
                headers=server.headers,
                probes=probes,
                on_result=note,
                **options.fields,
            )
        file.finish(report)
        if output.quiet and not output.json:
            print(tally(to_json(report)))
        elif not output.json:
            print_report(report)
        try:
            report.raise_for_failures()
        except VerificationError as error:
            error.found = to_json(report)
            raise
    if output.json:
        print_json(to_json(report))
