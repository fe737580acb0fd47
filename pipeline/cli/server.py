"""Commands that start or talk to a server."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.guide import doubt_about, read_guide
from pipeline.cli.options import Connection, EnvOption, Invocation, Output, new_file
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.verify import CheckResult
    from trtllm_client import Chunk, Client, Completion, GenerateRequest


def serve(
    *,
    context: typer.Context,
    repository: Annotated[Path, typer.Argument(help="A repository, e.g. build/<name>/repository.")],
    host: Annotated[str, typer.Option(help="Address to listen on; loopback by default.")] = (
        "127.0.0.1"
    ),
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 picks a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Metrics port; 0 picks a free one.")] = 8002,
    log: Annotated[Path, typer.Option(help="The server's log.", callback=new_file)] = Path(
        "triton.log"
    ),
    devices: Annotated[
        str | None, typer.Option(help="GPUs, e.g. 0,1; the first ones by default.")
    ] = None,
    orchestrator: Annotated[
        bool, typer.Option("--orchestrator", help="One server that spawns a worker per rank.")
    ] = False,
    mpirun: Annotated[
        bool, typer.Option("--mpirun", help="Start an engine of one rank under mpirun too.")
    ] = False,
    env: EnvOption = None,  # noqa: ARG001  its callback has done it
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the docker command of a GPU repository.")
    ] = False,
    output: Output,
) -> None:
    """Serve a repository with Triton until interrupted, after checking every file of it."""
    from pipeline.cli.console import print_json, print_warning
    from pipeline.serving import check_ports, device_numbers, serve_command, serve_forever

    print_warning(repository)
    check_ports({"grpc": grpc_port, "http": http_port, "metrics": metrics_port})
    options: dict[str, Any] = {
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "devices": device_numbers(devices),
        "orchestrator": orchestrator,
        "mpirun": mpirun,
    }
    if print_command:
        launch = serve_command(repository, **options)
        if output.json:
            print_json({"command": list(launch.command), "image": launch.image})
        else:
            print(launch.text)
        return

    def ready(addresses: dict[str, str], seconds: float) -> None:
        if output.json:
            print_json({**addresses, "ready_seconds": round(seconds, 3)})
            sys.stdout.flush()  # whoever reads the file or pipe waits for exactly this
            # It is the one document of this run; what may go wrong later is told on stderr.
            context.ensure_object(Invocation).json = False
        else:
            shown = ", ".join(f"{name} {address}" for name, address in addresses.items())
            print(f"ready in {seconds:.1f} s: {shown}; stop with Ctrl-C", flush=True)

    serve_forever(repository, log=log, on_ready=ready, **options)


def generate(
    *,
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate, at most.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="0 or absent is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from this much probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this text; repeatable.")
    ] = None,
    json_object: Annotated[
        bool, typer.Option("--json-object", help="Make the text a JSON object or array.")
    ] = False,
    json_schema: Annotated[
        Path | None, typer.Option(help="Make the text JSON of the schema in this file.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Make the text match this regular expression as a whole.")
    ] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="Make the text follow the EBNF grammar in this file.")
    ] = None,
    lora_task_id: Annotated[
        int | None,
        typer.Option(help="The LoRA adapter that answers: its number in serve.lora_adapters."),
    ] = None,
    server: Connection,
    output: Output,
) -> None:
    """Stream a completion to the terminal."""
    from pipeline.cli.console import print_json
    from trtllm_client import Client, GenerateRequest, finish_reason

    kind, guide = read_guide(
        json_object=json_object, json_schema=json_schema, regex=regex, grammar=grammar
    )
    request = GenerateRequest(
        prompt=_standard_input() if prompt == "-" else prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_words=tuple(stop or ()),
        guided_decoding_guide_type=kind,
        guided_decoding_guide=guide,
        lora_task_id=lora_task_id,
    )
    request.validate()  # before a server is started for it
    pieces: list[Chunk | Completion] = []
    with (
        server.address() as address,
        Client(
            address,
            model=server.model,
            timeout=server.timeout,
            tls=server.tls,
            headers=server.headers,
        ) as client,
    ):
        started = time.monotonic()
        for piece in _pieces(client, request):
            pieces.append(piece)
            if not output.json:
                print(piece.text, end="", flush=True)
        seconds = time.monotonic() - started
    text = "".join(piece.text for piece in pieces)
    counts = [piece.num_output_tokens for piece in pieces if piece.num_output_tokens is not None]
    finish = finish_reason(sum(counts) if counts else None, max_tokens)
    if output.json:
        print_json(
            {
                "text": text,
                "pieces": len(pieces),
                "seconds": round(seconds, 3),
                "finish_reason": finish,
                "num_output_tokens": sum(counts) if counts else None,
            }
        )
    else:
        print()
    if finish == "length" and (doubt := doubt_about(kind, text)):
        print(f"the text ended at --max-tokens {max_tokens}; {doubt}", file=sys.stderr)


def _pieces(client: Client, request: GenerateRequest) -> Iterator[Chunk | Completion]:
    """An answer as it comes; in one piece from a model that answers once."""
    from pipeline.triton.contract import answering_model

    if not client.model_metadata(answering_model(client.model)).decoupled:
        yield client.generate(request)
        return
    with client.stream(request) as stream:
        yield from stream


def _standard_input() -> bytes:
    """The prompt as bytes, so that the request can say what is wrong with them."""
    prompt = sys.stdin.buffer.read()
    if not prompt:
        raise UsageError(
            "prompt is empty",
            where="standard input",
            fix="Pipe a text into the command, or give it as an argument",
        )
    return prompt


def verify(
    *,
    junit: Annotated[
        Path | None, typer.Option(help="Also write JUnit XML here.", callback=new_file)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The model's tokenizer, for --url: a repository or a model directory."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK,...", help="Run these checks only; repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK,...", help="Leave these checks out; repeatable."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='Prompts: one a line, or .jsonl with {"prompt": ...}.'),
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
    server: Connection,
    output: Output,
) -> None:
    """Run the conformance checks against a server, started here or anywhere."""
    from pipeline.cli.conformance import junit_of, options_of
    from pipeline.cli.console import print_json, progress_for
    from pipeline.errors import VerificationError
    from pipeline.source.probes import find_probes, known_probes
    from pipeline.verify import print_report, run_conformance, to_json

    options = options_of(only, skip, prompts, tolerance, strict=strict, patience=server.timeout)
    probes = known_probes(server.repository) if server.repository else None
    if tokenizer is not None:
        probes = find_probes(tokenizer)
    with junit_of(junit, server) as file, server.address() as address:
        with progress_for(output.json).task("conformance checks", options.count) as task:

            def note(result: CheckResult) -> None:
                file.note(result)
                task.advance()

            report = run_conformance(
                address,
                model=server.model,
                tls=server.tls,
                headers=server.headers,
                probes=probes,
                on_result=note,
                **options.fields,
            )
        file.finish(report)
        if not output.json:
            print_report(report)
        try:
            report.raise_for_failures()
        except VerificationError as error:
            error.found = to_json(report)
            raise
    if output.json:
        print_json(to_json(report))


def bench(
    *,
    concurrency: Annotated[
        list[str] | None,
        typer.Option(metavar="STREAMS,...", help="Streams kept open together; repeatable."),
    ] = None,
    requests: Annotated[
        int, typer.Option(help="Requests per number of streams, spread over the rounds.")
    ] = 40,
    rounds: Annotated[int, typer.Option(help="How often each number is measured, in turns.")] = 5,
    output_tokens: Annotated[int, typer.Option(help="Tokens per request.")] = 32,
    input_tokens: Annotated[
        int, typer.Option(help="Tokens of the prompts that prefill is measured with, about.")
    ] = 256,
    server: Connection,
    output: Output,
) -> None:
    """Measure throughput and latency of a running server."""
    from pipeline.bench import measure, print_results
    from pipeline.cli.console import print_json, progress_for

    levels = _levels(concurrency) or [1, 8]
    progress = progress_for(output.json)
    with server.address() as address, progress.task("load test", rounds) as task:
        results = measure(
            address,
            model=server.model,
            concurrency=levels,
            requests=requests,
            rounds=rounds,
            output_tokens=output_tokens,
            input_tokens=input_tokens,
            timeout=server.timeout,
            tls=server.tls,
            headers=server.headers,
            on_round=lambda _number: task.advance(),
            on_measured=lambda measurement: progress.note(str(measurement)),
        )
    if output.json:
        print_json(results)
    else:
        print_results(results)


def _levels(given: list[str] | None) -> list[int]:
    """The numbers in an option that may be repeated and may hold several with commas."""
    words = [word.strip() for part in given or () for word in part.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError(
            f"--concurrency {','.join(words)} is no list of numbers",
            fix="Give how many streams are kept open together, e.g. --concurrency 1,8,32",
        )
    return [int(word) for word in words]
