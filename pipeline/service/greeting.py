"""What a service says when it is ready: where it is, and what to try."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.source.probes import OWN_FOLDER
from pipeline.triton.tensors import BLS, PREPROCESSING

KEY_OPTION = "--key-from"
_PROMPT = "Once there was a"
_COMPLETION = '{"prompt": "Once there was a", "max_tokens": 20}'
_MESSAGES = '{"messages": [{"role": "user", "content": "Hello"}]}'
_REQUEST = '{"text_input": "Once there was a", "max_tokens": 20}'


def greeting(
    repository: Path,
    addresses: Mapping[str, str],
    log: Path | None,
    seconds: float,
    *,
    access: Sequence[str] = (),
) -> str:
    """Writes the lines.

    Args:
        repository: What is served.
        addresses: By ``grpc``, ``http``, ``openai`` and ``metrics``.
        log: The log's file; None where it is among these lines.
        seconds: How long it took.
        access: What a client's command has to say besides the address.
    """
    names = {"grpc": "gRPC", "http": "HTTP", "openai": "OpenAI"}
    shown = {names.get(key, key): address for key, address in addresses.items()}
    if log:
        shown["log"] = str(log)
    lines = [
        f"ready in {seconds:.1f} s, pid {os.getpid()}; stop with Ctrl-C",
        *(f"  {name:<7}  {place}" for name, place in shown.items()),
    ]
    if (repository / BLS).is_dir():
        curl = []
        # A key on the command line of curl would be in the process list.
        if "http" in addresses and KEY_OPTION not in access:
            curl = [
                f"  curl -s {addresses['http']}/v2/models/{BLS}/generate \\",
                f"    -d {shlex.quote(_REQUEST)}",
            ]
        if "openai" in addresses and KEY_OPTION not in access:
            curl += ask_openai(addresses["openai"], chats=has_chat_template(repository))
        at = shlex.join(["--url", addresses["grpc"], *access])
        lines += [
            "try:",
            *curl,
            f"  trtllm-pipeline generate {at} {shlex.quote(_PROMPT)}",
        ]
        if has_chat_template(repository):
            lines.append(f"  trtllm-pipeline generate --chat {at}")
    elif "grpc" not in addresses and "openai" in addresses:
        curl = []
        if KEY_OPTION not in access:
            curl = ask_openai(addresses["openai"], chats=chats_by_itself(repository))
        at = shlex.join(["--url", addresses["openai"].removesuffix("/v1"), *access])
        lines += ["try:", *curl, f"  trtllm-pipeline generate {at} {shlex.quote(_PROMPT)}"]
        if chats_by_itself(repository):
            lines.append(f"  trtllm-pipeline generate --chat {at}")
    return "\n".join(lines)


def chats_by_itself(repository: Path) -> bool:
    """Says whether a repository with a server of its own has a model with a chat template."""
    folder = repository / OWN_FOLDER
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        config = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    except OSError:
        return False
    return '"chat_template"' in config


def ask_openai(url: str, *, chats: bool) -> list[str]:
    """Writes the lines that ask an OpenAI endpoint with curl.

    Args:
        url: Of the endpoint, with ``/v1``.
        chats: Whether the model takes messages.
    """
    path, body = ("chat/completions", _MESSAGES) if chats else ("completions", _COMPLETION)
    return [
        f"  curl -s {url}/{path} \\",
        f"    -H 'Content-Type: application/json' -d {shlex.quote(body)}",
    ]


def has_chat_template(repository: Path) -> bool:
    """Says whether the server knows its model's chat template."""
    try:
        config = (repository / PREPROCESSING / "config.pbtxt").read_text(encoding="utf-8")
    except OSError:
        return False
    return 'key: "chat_template"' in config
