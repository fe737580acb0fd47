"""What a service says when it is ready: where it is, and what to try."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.triton.tensors import BLS, PREPROCESSING

KEY_OPTION = "--key-from"
_PROMPT = "Once there was a"
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
        addresses: By ``grpc``, ``http`` and ``metrics``.
        log: The log's file; None where it is among these lines.
        seconds: How long it took.
        access: What a client's command has to say besides the address.
    """
    names = {"grpc": "gRPC", "http": "HTTP"}
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
        at = shlex.join(["--url", addresses["grpc"], *access])
        lines += [
            "try:",
            *curl,
            f"  trtllm-pipeline generate {at} {shlex.quote(_PROMPT)}",
        ]
        if has_chat_template(repository):
            lines.append(f"  trtllm-pipeline generate --chat {at}")
    return "\n".join(lines)


def has_chat_template(repository: Path) -> bool:
    """Says whether the server knows its model's chat template."""
    try:
        config = (repository / PREPROCESSING / "config.pbtxt").read_text(encoding="utf-8")
    except OSError:
        return False
    return 'key: "chat_template"' in config
