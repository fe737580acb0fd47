"""The LLM API behind the protocol of :mod:`pipeline.targets.base`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline._version import __version__
from pipeline.dependencies import Requirements, versions
from pipeline.economics.hardware import Setting
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import (
    Contained,
    Diagnosis,
    EngineEvaluation,
    Explanation,
    NotMeasured,
    OwnType,
    Room,
    ServeCommand,
    Target,
)
from pipeline.targets.built_here import BuiltHere
from pipeline.targets.llmapi.rules import TOKENS_PER_BLOCK, refuse_unsupported
from pipeline.triton.parameters import EngineModel

if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2 as proto

    from pipeline.triton.log import LogPlace
    from pipeline.triton.running import RunningServer, ServerOptions

# Raised when the same checkpoint gives other files; part of the cache key.
LAYOUT_VERSION = "1"


class LlmApiTarget(BuiltHere):
    """Writes what TensorRT-LLM's LLM API serves behind Triton, without building anything."""

    no_script = (
        "there is no build script for the LLM API",
        "Nothing is built: its folder is written where the recipe runs, without a GPU",
    )
    not_taken_in = (
        "the LLM API has no engine that could be taken in",
        "It opens the checkpoint itself",
    )

    name = "llmapi"
    own_types: Mapping[str, OwnType] = MappingProxyType({})
    rounds_activations = True
    reads_source = True
    own_server = False
    takes_zero_points = False
    takes_input_order = False

    def needs(self, recipe: Recipe) -> Requirements:  # noqa: ARG002
        """Names the packages that write the folder: those that quantize have all of them."""
        return [(name, "quantize") for name in ("safetensors", "numpy")]

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:  # noqa: ARG002
        """Refuses what the PyTorch backend does not run, on the GPU that the recipe names.

        Raises:
            RecipeError: ``compile.gpu`` is not in the table.
            UnsupportedError: Naming the recipe's key, the reason and the remedy.
        """
        refuse_unsupported(recipe)

    def explain(self, recipe: Recipe, facts: ModelFacts) -> Explanation:  # noqa: ARG002
        """Shows what the LLM is opened with, and what changes against an engine."""
        from pipeline.targets.llmapi.explain import explain

        return explain(recipe)

    def setting(self, recipe: Recipe, facts: ModelFacts, remembered: Path) -> Setting | None:  # noqa: ARG002
        """Returns no machine: the bounds of ``plan`` are those of TensorRT engines."""
        return None

    def room(self, recipe: Recipe, facts: ModelFacts) -> Room | None:  # noqa: ARG002
        """Returns no memory: what the PyTorch backend keeps beside the weights is not known."""
        return None

    def step_tokens(self, recipe: Recipe) -> int:
        """Returns ``max_num_tokens``."""
        return recipe.compile.max_num_tokens

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """Returns ``compile`` without other targets' options."""
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
        """Writes ``checkpoint/``, a Hugging Face folder, and ``config.json`` with the sizes.

        Returns:
            ``target``, ``engine_bytes``, and the facts of :func:`.unified.write_unified`.

        Raises:
            CheckpointError: The checkpoint is not complete.
            CompileError: Its scales do not fit linears that are computed as one.
        """
        from pipeline.checkpoint.config import CheckpointConfig
        from pipeline.targets.llmapi.arguments import CHECKPOINT
        from pipeline.targets.llmapi.unified import write_unified

        assert source is not None, "the stage gives it where reads_source is true"
        folder = output / CHECKPOINT
        folder.mkdir()
        facts = write_unified(checkpoint, source, folder, progress, fused=True)
        sizes = recipe.compile
        config = {
            "version": __version__,
            "target": self.name,
            "pretrained_config": dict(CheckpointConfig.from_directory(checkpoint).raw),
            "build_config": {
                "max_batch_size": sizes.max_batch_size,
                "max_input_len": sizes.max_input_len,
                "max_seq_len": sizes.max_seq_len,
                "max_num_tokens": sizes.max_num_tokens,
                "max_beam_width": sizes.max_beam_width,
                "tokens_per_block": TOKENS_PER_BLOCK,
                "kv_cache_type": "PAGED",
            },
        }
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (output / "config.json").write_text(f"{text}\n", encoding="utf-8")
        written = facts.pop("bytes")
        return {"target": self.name, "engine_bytes": written, **facts}

    def next_steps(self, recipe: Recipe, folder: Path) -> Sequence[str]:  # noqa: ARG002
        """Returns none: the repository is what is served."""
        return ()

    def evaluation(self, recipe: Recipe) -> EngineEvaluation | NotMeasured:  # noqa: ARG002
        """Says that the LLM is not measured by the pipeline."""
        return NotMeasured(
            "TensorRT-LLM's PyTorch backend opens its folder on a GPU alone",
            "evaluate has measured the checkpoint whose codes and scales the folder holds; verify "
            "tries the server itself",
        )

    def triton_model(self, recipe: Recipe, engine: Mapping[str, Any]) -> EngineModel:
        """Returns the Python front, and ``model.yaml`` and the migration report beside it."""
        from pipeline.targets.llmapi.triton_model import llmapi_engine

        return llmapi_engine(recipe, engine)

    def engine_problems(
        self, model: proto.ModelConfig, directory: Path, config: Mapping[str, Any]
    ) -> Iterator[str]:
        """Names what the engine directory lacks."""
        from pipeline.targets.llmapi.triton_model import engine_problem

        place = model.parameters["gpt_model_path"].string_value
        if problem := engine_problem(directory, config, place, self.name):
            yield problem

    def server(self, repository: Path, log: LogPlace, options: ServerOptions) -> RunningServer:
        """Makes the server: the pinned container, or in place inside one.

        Raises:
            UsageError: An option is not one of this target.
            UnsupportedError: This machine cannot serve it; the message has the command for one
                that can.
        """
        from pipeline.targets.llmapi.serve import plan_launch
        from pipeline.targets.tensorrt.serve.server import LaunchedServer

        return LaunchedServer(repository, plan_launch(repository, options), log_file=log)

    def serve_command(self, repository: Path, options: ServerOptions) -> ServeCommand:
        """Returns the command that serves the repository in a container, or inside one.

        Raises:
            UsageError: An option is not one of this target.
        """
        from pipeline.targets.llmapi.serve import command_launch

        return command_launch(repository, options)

    def compose(self, repository: Path, options: ServerOptions) -> str:
        """Writes a compose file of the pinned image.

        Raises:
            UsageError: An option is not one of this target.
        """
        from pipeline.targets.llmapi.serve import docker_launch
        from pipeline.targets.tensorrt.serve.compose import compose_file
        from pipeline.targets.tensorrt.serve.launch import endpoints

        launch = docker_launch(repository, options, endpoints(options))
        return compose_file(repository, launch, options.devices)

    def contained(self, repository: Path, exit_timeout_s: str) -> Contained:
        """Describes the pinned image with one tritonserver.

        Raises:
            RepositoryError: The engine's ``config.json`` does not say its ranks.
        """
        from pipeline.targets.tensorrt.serve.container import MOUNT, server_command
        from pipeline.targets.tensorrt.serve.launch import engine_ranks
        from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER

        return Contained(
            image=DEFAULT_CONTAINER.image,
            dockerfile=None,
            builder="docker/build.Dockerfile",
            command=server_command(1, exit_timeout_s=exit_timeout_s),
            arguments=(),
            spread=None,
            mount=MOUNT,
            shared_memory=2 << 30,
            gpus=engine_ranks(repository),
            finishes=True,
            checks=False,
        )

    def findings(self) -> list[Diagnosis]:
        """Returns nothing: the folder is written anywhere, and doctor has the GPUs already."""
        return []


if TYPE_CHECKING:
    _keeps_the_protocol: Target = LlmApiTarget()
