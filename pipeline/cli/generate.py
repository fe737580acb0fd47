"""The command ``generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.chat import ChatOptions
from pipeline.cli.guide import doubt_about, read_guide
from pipeline.cli.options import Connection, Output
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from trtllm_client._request import SamplingOptions

TEXT_TOKENS, CHAT_TOKENS = 64, 128


def generate(
    *,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The prompt; - reads it from standard input. With --chat, a message; a "
            "conversation is typed where there is none."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help=f"Tokens to generate, at most: {TEXT_TOKENS}, or {CHAT_TOKENS} in a chat."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="How evenly to sample, with --top-k or --top-p; without, it is greedy."),
    ] = None,
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
    chat: ChatOptions,
    server: Connection,
    output: Output,
) -> None:
    """Stream a completion or a chat to the terminal."""
    from pipeline.cli.answers import Answer, Asking
    from pipeline.cli.chat import Conversation, converse, template_of
    from pipeline.cli.console import print_answer, print_json, show
    from pipeline.engine_client.connect import connect
    from trtllm_client import GenerateRequest

    chat.check()
    kind, guide = read_guide(
        json_object=json_object, json_schema=json_schema, regex=regex, grammar=grammar
    )
    limit = max_tokens if max_tokens is not None else CHAT_TOKENS if chat.chat else TEXT_TOKENS
    sampling: SamplingOptions = {
        "max_tokens": limit,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop_words": tuple(stop or ()),
        "guided_decoding_guide_type": kind,
        "guided_decoding_guide": guide,
        "lora_task_id": lora_task_id,
    }
    text = _prompt(prompt, chat=chat.chat, json_output=output.json)
    # What is wrong is said before a server is started for it.
    GenerateRequest(text if text is not None else "", **sampling).validate()
    template, variables = chat.template(), chat.variables
    if temperature and top_k is None and top_p is None:
        show("note", _GREEDY, "bold")
    answer = Answer()
    with (
        server.address() as address,
        connect(
            address,
            model=server.model,
            timeout=server.timeout,
            tls=server.tls,
            headers=server.headers,
        ) as client,
    ):
        conversation = Conversation(chat.system)
        if chat.chat and template is None:
            template = template_of(client)
        asking = Asking(client, sampling, template, variables)
        if text is None:
            converse(asking, conversation, limit)
            return
        if chat.chat:
            conversation.say(text.decode() if isinstance(text, bytes) else text)
        asking.ask(
            conversation.messages if chat.chat else text,
            answer,
            (lambda _: None) if output.json else print_answer,
        )
    if output.json:
        print_json(answer.as_dict(limit))
    else:
        print()
    if answer.finish_reason(limit) == "length" and (doubt := doubt_about(kind, answer.text)):
        print(f"the text ended at --max-tokens {limit}; {doubt}", file=sys.stderr)


_GREEDY = (
    "--temperature without --top-k or --top-p changes nothing: the server takes the likeliest "
    "token then"
)


def _prompt(prompt: str | None, *, chat: bool, json_output: bool) -> str | bytes | None:
    """The text to send; None where a conversation is to be typed."""
    if prompt is None and not chat:
        raise UsageError(
            "missing argument 'PROMPT'",
            where="trtllm-pipeline generate",
            fix="Give the text to continue, - to read it from standard input, or --chat to talk "
            "to a chat model",
        )
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        text = _standard_input()
        # Whoever pipes a message does not mean the line end that echo puts behind it.
        return text.removesuffix(b"\n").removesuffix(b"\r") if chat else text
    if prompt is None and (json_output or not sys.stdout.isatty()):
        raise UsageError(
            "a conversation needs a terminal, and cannot be JSON",
            where="trtllm-pipeline generate --chat",
            fix="Give the message as PROMPT",
        )
    return prompt


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
