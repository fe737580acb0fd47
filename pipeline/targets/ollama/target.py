"""Ollama behind the protocol of :mod:`pipeline.targets.base`: llama.cpp's file, and a Modelfile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import Diagnosis, Target
from pipeline.targets.llamacpp.measure import FILE
from pipeline.targets.llamacpp.target import LlamaCppTarget

MODELFILE = "Modelfile"
# Raised when the same checkpoint gives another Modelfile; part of the engine's cache key.
_VERSION = "1"


class OllamaTarget(LlamaCppTarget):
    """Writes what ``ollama create`` reads. Ollama itself is not run by the pipeline."""

    name = "ollama"
    program = "Ollama"
    own_server = False

    def tools(self) -> dict[str, str]:
        """Returns those of the file, and the version of our Modelfile."""
        return {**super().tools(), "modelfile": _VERSION}

    def compile(
        self,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        source: Path | None = None,
    ) -> dict[str, Any]:
        """Writes ``model.gguf``, ``config.json`` and ``Modelfile``; see :class:`LlamaCppTarget`.

        Raises:
            CompileError: The file cannot hold the tokenizer or a tensor, or the Modelfile the text
                of an end token.
        """
        facts = super().compile(checkpoint, recipe, output, progress, source)
        from pipeline.source.end_ids import read_end_ids
        from pipeline.targets.llamacpp.source import licence_of
        from pipeline.targets.ollama.modelfile import modelfile
        from trtllm_client import ChatTemplate

        assert source is not None
        written = modelfile(
            FILE,
            recipe.compile.max_seq_len,
            [end.token for end in read_end_ids(source).ends if end.token],
            chats=ChatTemplate.find(source) is not None,
            licence=licence_of(source),
        )
        (output / MODELFILE).write_text(written, encoding="utf-8")
        return facts

    def next_steps(self, recipe: Recipe, folder: Path) -> Sequence[str]:
        """Writes the commands of Ollama, which nobody has run with this folder."""
        return [
            "# Ollama itself was not run; the file was read back, and llama.cpp runs such files",
            f"ollama create {recipe.name} -f {folder / MODELFILE}",
            f"ollama run {recipe.name}",
        ]

    def findings(self) -> list[Diagnosis]:
        """Says what writes the files."""
        return super().findings()[:1]


if TYPE_CHECKING:
    _keeps_the_protocol: Target = OllamaTarget()
