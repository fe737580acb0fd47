"""TensorRT Edge-LLM behind the protocol of :mod:`pipeline.targets.base`: an export alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline._version import __version__
from pipeline.dependencies import Requirements, versions
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import Explanation
from pipeline.targets.edgellm.rules import HARDWARE, VERSION, refuse_unsupported
from pipeline.targets.exported import ExportedTarget

# Raised when the same checkpoint gives other files; part of the cache key.
LAYOUT_VERSION = "1"
CHECKPOINT = "checkpoint"
NOT_RUN = (
    "Not run by us: TensorRT Edge-LLM itself, on any device. The folder's tensors were compared "
    "with the checkpoint, and the commands are from its documentation."
)
_TABLE = (
    "| `device` | | SM | computes in | support |",
    "|---|---|---|---|---|",
    *(
        f"| `{key}` | {d.name} | {', '.join(map(str, d.sms))} | {d.formats} | {d.support} |"
        for key, d in HARDWARE.items()
    ),
)


class EdgeLlmTarget(ExportedTarget):
    """Writes the folder that TensorRT Edge-LLM compiles, and the commands that do it."""

    name = "edgellm"
    program = "TensorRT Edge-LLM"

    def needs(self, recipe: Recipe) -> Requirements:  # noqa: ARG002
        """Names the packages that write the folder: those that quantize have all of them."""
        return [(name, "quantize") for name in ("safetensors", "numpy")]

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:  # noqa: ARG002
        """Refuses what TensorRT Edge-LLM does not compile, for the device that the recipe names.

        Raises:
            UnsupportedError: Naming the recipe's key, the reason and the remedy.
        """
        refuse_unsupported(recipe)

    def explain(self, recipe: Recipe, facts: ModelFacts) -> Explanation:  # noqa: ARG002
        """Shows the commands and the hardware that the engine can be compiled for."""
        commands = self.next_steps(recipe, Path("export"))
        lines = [
            f"TensorRT Edge-LLM {VERSION}: {recipe.quantize.format}",
            *(f"  {line}" for line in commands),
            "",
            "it is for:",
            *(
                f"  {d.name} (SM {', '.join(map(str, d.sms))}): {d.support}"
                for d in HARDWARE.values()
            ),
            NOT_RUN,
        ]
        return Explanation(lines, {"commands": list(commands), "not_run": NOT_RUN})

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """Returns ``compile`` without other targets' options; the commands have its ranks."""
        return {"compile": recipe.compile.read_by(self.name)}

    def tools(self) -> Mapping[str, str]:
        """Returns the versions of what writes the folder."""
        return {"layout": LAYOUT_VERSION, **versions(("numpy", "safetensors"))}

    def compile(
        self,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        source: Path | None = None,
    ) -> dict[str, Any]:
        """Writes ``checkpoint/``, ``config.json`` and ``README.md``.

        Returns:
            ``target``, and the facts of :func:`pipeline.targets.llmapi.unified.write_unified`.

        Raises:
            CheckpointError: The checkpoint is not complete.
        """
        from pipeline.targets.llmapi.unified import write_unified

        assert source is not None, "the stage gives it where reads_source is true"
        folder = output / CHECKPOINT
        folder.mkdir()
        facts = write_unified(checkpoint, source, folder, progress, fused=False)
        config = {"version": __version__, "target": self.name, "program": f"{VERSION} or later"}
        text = json.dumps(config, indent=2, sort_keys=True)
        (output / "config.json").write_text(f"{text}\n", encoding="utf-8")
        (output / "README.md").write_text(self._readme(recipe), encoding="utf-8")
        written = facts.pop("bytes")
        return {"target": self.name, "engine_bytes": written, **facts}

    def next_steps(self, recipe: Recipe, folder: Path) -> Sequence[str]:
        """Writes the commands: export to ONNX, compile on the device, run."""
        sizes = recipe.compile
        checkpoint = shlex.quote(str(folder / CHECKPOINT))
        programs = "./build/examples/llm"
        limits = (
            f"--maxBatchSize {sizes.max_batch_size} --maxInputLen {sizes.max_input_len} "
            f"--maxKVCacheCapacity {sizes.max_seq_len}"
        )
        files = "--inputFile input.json --outputFile output.json"
        return (
            f"tensorrt-edgellm-export {checkpoint} onnx",
            "# On the device, in a build of TensorRT Edge-LLM:",
            f"{programs}/llm_build --onnxDir onnx/llm --engineDir engine {limits}",
            f"{programs}/llm_inference --engineDir engine {files}",
        )

    def _readme(self, recipe: Recipe) -> str:
        sizes = recipe.compile
        direct = (
            f"--max-input-len {sizes.max_input_len} --max-kv-cache-capacity {sizes.max_seq_len} "
            f"--max-batch-size {sizes.max_batch_size}"
        )
        steps = "\n".join(self.next_steps(recipe, Path()))
        build = f"tensorrt-edgellm-build --model-dir {CHECKPOINT} --engine-dir engine {direct}"
        serve = f"tensorrt-edgellm-serve {CHECKPOINT} --cache-dir cache {direct}"
        table = "\n".join(_TABLE)
        return f"""# {recipe.name} for TensorRT Edge-LLM

Written by trtllm-pipeline in {recipe.quantize.format}. `{CHECKPOINT}/` is a Hugging Face folder in
ModelOpt's layout. It is compiled and run like this, from this folder:

```sh
{steps}
```

Or without ONNX, and served over HTTP, both experimental there:

```sh
{build} --tp-size {sizes.tensor_parallel}
{serve} --enable-in-flight-batching --port 8000
```

## Hardware of version {VERSION}

{table}

A payload loads on exactly its SM. There is neither a Triton backend nor gRPC, so the client and
`trtllm-pipeline verify` do not reach it.

{NOT_RUN}
"""
