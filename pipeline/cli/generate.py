"""The command ``generate``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.guide import doubt_about, read_guide
from pipeline.cli.options import Connection, Output
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from trtllm_client import Chunk, Client, Completion, GenerateRequest


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
