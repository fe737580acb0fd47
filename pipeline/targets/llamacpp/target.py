"""llama.cpp behind the protocol of :mod:`pipeline.targets.base`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline._version import __version__
from pipeline.dependencies import Requirements, require, versions
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe.llamacpp import TYPE_BITS
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import Diagnosis, EngineEvaluation, OwnType, Target, look_for
from pipeline.targets.llamacpp.measure import FILE, ReadBack
from pipeline.targets.llamacpp.refusals import refuse_unsupported
from pipeline.targets.llamacpp.served import ServedByLlamaCpp

# Raised when the same checkpoint gives another file; part of the engine's cache key.
FILE_VERSION = "2"
PACKAGES = ("gguf", "xllamacpp", "numpy")


class LlamaCppTarget(ServedByLlamaCpp):
    """Writes a GGUF file."""

    name = "llamacpp"
    program = "llama.cpp"
    own_types: Mapping[str, OwnType] = {
        name: OwnType({"compile.llamacpp.type": name}, bits)
        for name, bits in TYPE_BITS.items()
        if bits is not None
    }
    rounds_activations = False

    def needs(self, recipe: Recipe) -> Requirements:  # noqa: ARG002
        """Lists the packages that write the file, and the one that has llama.cpp."""
        own = [(name, "llamacpp") for name in ("gguf", "xllamacpp", "httpx2")]
        return [*own, ("transformers", "quantize")]

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses formats, lengths and models that no GGUF file holds.

        Raises:
            UnsupportedError: Naming the recipe's key, the reason and the remedy.
        """
        refuse_unsupported(recipe, facts)

    def tools(self) -> Mapping[str, str]:
        """Returns the versions of the packages that make the file's bytes, and of our writer."""
        return {"file": FILE_VERSION, **versions(PACKAGES)}

    def compile(
        self,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        source: Path | None = None,
    ) -> dict[str, Any]:
        """Writes ``model.gguf``, ``config.json`` and the source's licence, if it has one.

        Args:
            checkpoint: A TensorRT-LLM checkpoint of any tensor and pipeline parallelism.
            recipe: ``compile.llamacpp`` says what is stored.
            output: An empty directory.
            progress: Where the layers are counted.
            source: The snapshot that has the tokenizer.

        Returns:
            ``target``, ``quant_algo``, ``engine_bytes``, ``max_batch_size``, ``max_seq_len``,
            ``type``, ``types`` (how many tensors have each number type), ``changes`` (what is
            not exactly the checkpoint's, and of how many tensors) and ``texts`` (which rare texts
            get other ids in llama.cpp).

        Raises:
            CheckpointError: The checkpoint is not complete.
            CompileError: The file cannot hold the tokenizer or a tensor.
            MissingDependencyError: gguf or xllamacpp is not installed.
        """
        require("gguf", "llamacpp")
        from pipeline.checkpoint.config import CheckpointConfig
        from pipeline.targets.llamacpp.gguf_file import write_gguf
        from pipeline.targets.llamacpp.likeness import differences
        from pipeline.targets.llamacpp.source import licence_of, read_tokens

        assert source is not None
        opened = CheckpointConfig.from_directory(checkpoint)
        tokens = read_tokens(source, progress, trust_remote_code=recipe.model.trust_remote_code)
        path = output / FILE
        layers = opened.facts.num_hidden_layers
        with progress.task("writing the GGUF file", layers) as task:
            written = write_gguf(
                checkpoint,
                path,
                recipe.compile.llamacpp.type,
                tokens,
                name=recipe.name,
                advance=task.advance,
            )
        unlike = differences(tokens.tokenizer)
        for change, count in written.changes.items():
            progress.note(f"{count} tensors are not exactly the checkpoint's: {change}")
        for difference in unlike:
            progress.note(difference)
        held = {
            "type": recipe.compile.llamacpp.type,
            "types": written.types,
            "changes": written.changes,
            "texts": unlike,
        }
        config = {
            "version": __version__,
            "target": self.name,
            "pretrained_config": dict(opened.raw),
            "build_config": {
                "max_batch_size": recipe.compile.max_batch_size,
                "max_input_len": recipe.compile.max_input_len,
                "max_seq_len": recipe.compile.max_seq_len,
            },
            **held,
        }
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (output / "config.json").write_text(f"{text}\n", encoding="utf-8")
        if licence := licence_of(source):
            (output / "LICENSE").write_text(licence, encoding="utf-8")
        return {
            "target": self.name,
            "quant_algo": opened.quantization.algo,
            "engine_bytes": path.stat().st_size,
            "max_batch_size": recipe.compile.max_batch_size,
            "max_seq_len": recipe.compile.max_seq_len,
            **held,
        }

    def next_steps(self, recipe: Recipe, folder: Path) -> Sequence[str]:
        """Writes the command of llama.cpp's own server."""
        slots, length = recipe.compile.max_batch_size, recipe.compile.max_seq_len
        place = f"--host 127.0.0.1 --parallel {slots} --ctx-size {slots * length}"
        return [f"llama-server --model {folder / FILE} {place}"]

    def evaluation(self, recipe: Recipe) -> EngineEvaluation:
        """Measures the file that was written, on every machine."""
        longest = recipe.compile.max_seq_len
        decided = {"tools": self.tools(), "longest_window": longest}
        return ReadBack(decided, longest, TYPE_BITS[recipe.compile.llamacpp.type])

    def findings(self) -> list[Diagnosis]:
        """Says whether GGUF files can be written and run here."""
        return [
            look_for("gguf", "llamacpp", "GGUF files"),
            look_for("xllamacpp", "llamacpp", "llama.cpp's server and its K types"),
        ]


if TYPE_CHECKING:
    _keeps_the_protocol: Target = LlamaCppTarget()
