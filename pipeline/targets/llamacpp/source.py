"""What a GGUF file takes from the snapshot: its tokenizer, its end tokens, its chat template."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.errors import CompileError
from pipeline.progress import Progress
from pipeline.source.end_ids import read_end_ids
from pipeline.source.runtime import offline_and_quiet
from pipeline.source.tokenizer import open_tokenizer, served_file
from pipeline.targets.llamacpp.vocabulary import Tokens
from trtllm_client import ChatTemplate, InvalidRequest

LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")


def read_tokens(snapshot: Path, progress: Progress, *, trust_remote_code: bool = False) -> Tokens:
    """Reads them as the served repository has them: the tokenizer as transformers makes it.

    Args:
        snapshot: A Hugging Face folder.
        progress: Where long work reports.
        trust_remote_code: Runs the snapshot's own Python.

    Raises:
        SourceError: The snapshot has no tokenizer that can be read.
        CompileError: Its chat template cannot be read.
    """
    with offline_and_quiet(progress):
        tokenizer = open_tokenizer(snapshot, trust_remote_code=trust_remote_code)
        content = json.loads(served_file(tokenizer, snapshot))
    try:
        template = ChatTemplate.find(snapshot)
    except InvalidRequest as error:
        raise CompileError(error.what, where=error.where, why=error.why, fix=error.fix) from error
    return Tokens(
        content,
        tokenizer.bos_token_id,
        read_end_ids(snapshot).ids,
        template.source if template else None,
    )


def licence_of(snapshot: Path) -> str | None:
    """Reads the licence's text; None where the snapshot has none."""
    for name in LICENCES:
        if (snapshot / name).is_file():
            return (snapshot / name).read_text(encoding="utf-8", errors="replace")
    return None
