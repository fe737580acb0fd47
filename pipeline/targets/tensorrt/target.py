"""The GPU target behind the protocol of :mod:`pipeline.targets.base`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import Requirements, installed
from pipeline.economics.hardware import Setting
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.targets.base import (
    Contained,
    Diagnosis,
    EngineEvaluation,
    Explanation,
    GivenEngine,
    NotMeasured,
    OwnType,
    Room,
    ServeCommand,
    Target,
)
from pipeline.targets.tensorrt.environment import engine_tools, inspect_machine
from pipeline.targets.tensorrt.plan.build_config import build_section
from pipeline.targets.tensorrt.plan.preview import preview_engine, preview_here, refuse_errors
from pipeline.targets.tensorrt.toolchain import check_tensorrt_llm
from pipeline.triton.parameters import EngineModel

if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2 as proto

    from pipeline.triton.log import LogPlace
    from pipeline.triton.running import RunningServer, ServerOptions


class TensorRtTarget:
    """Compiles for an NVIDIA GPU with TensorRT-LLM."""

    name = "tensorrt"
    own_types: Mapping[str, OwnType] = MappingProxyType({})
    rounds_activations = True
    own_server = False
    reads_source = False
    takes_zero_points = True
    # "GPTQ with desc_act=True is not implemented!" (examples/qwen/convert_checkpoint.py), nor is it
    # in the layer that its checkpoints are loaded into.
    takes_input_order = False

    def needs(self, recipe: Recipe) -> Requirements:  # noqa: ARG002
        """Names none: it builds and serves in place or in a container, and says itself what is
        missing for either.
        """
        return ()

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses what ``trtllm-build`` or Triton's backend would refuse later.

        Raises:
            RecipeError: ``compile.gpu`` is not in the table.
            UnsupportedError: Naming the recipe's key, the reason and the remedy; or the
                TensorRT-LLM that is installed here is not the pinned one.
        """
        if (found := installed("tensorrt-llm")) is not None:
            check_tensorrt_llm(found)
        refuse_errors(recipe, facts)

    def explain(self, recipe: Recipe, facts: ModelFacts) -> Explanation:
        """Predicts what ``trtllm-build`` makes of the recipe, and what fits the GPU.

        Raises:
            RecipeError: ``compile.gpu`` is not in the table.
        """
        from pipeline.targets.tensorrt.plan.lines import preview_lines

        explained = preview_here(recipe, facts)
        return Explanation(preview_lines(explained), explained.as_dict())

    def setting(
        self,
        recipe: Recipe,
        facts: ModelFacts,
        remembered: Path,  # noqa: ARG002
    ) -> Setting | None:
        """Describes the GPUs that ``compile.gpu`` names by their data sheet.

        Raises:
            RecipeError: ``compile.gpu`` is not in the table.
        """
        from pipeline.targets.tensorrt.plan.setting import gpu_setting

        return gpu_setting(recipe, facts)

    def room(self, recipe: Recipe, facts: ModelFacts) -> Room | None:
        """Says what fits each of the GPUs that ``compile.gpu`` names.

        Raises:
            RecipeError: ``compile.gpu`` is not in the table.
        """
        preview = preview_engine(recipe, facts)
        gpu, memory = preview.gpu, preview.memory
        if gpu is None or memory.kv_pool is None:
            return None
        ranks = preview.checkpoint.world_size
        return Room(memory.kv_pool // memory.kv_bytes_per_sequence, f"{ranks} x {gpu.name}")

    def step_tokens(self, recipe: Recipe) -> int:
        """Returns ``max_num_tokens``."""
        return recipe.compile.max_num_tokens

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """Returns what it reads of ``compile``, without ``workers``; and the two formats of
        ``quantize``, which decide FP8 attention.
        """
        return build_section(recipe)

    def tools(self) -> Mapping[str, str]:
        """Returns the GPU, its driver's branch, and versions of TensorRT-LLM, TensorRT and CUDA.
        They are those of this machine; see
        :func:`pipeline.targets.tensorrt.environment.engine_tools`.
        """
        return engine_tools()

    def compile(
        self,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        source: Path | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Writes ``rankN.engine``, ``config.json`` and the engine's own manifest, and tries them.

        Args:
            checkpoint: A validated TensorRT-LLM checkpoint directory.
            recipe: ``compile`` gives sizes and options.
            output: An empty directory.
            progress: Where the build reports.
            source: Is not read.

        Returns:
            See :func:`pipeline.targets.tensorrt.build.build.build_engine`; and ``smoke``, the
            tokens generated for a few prompts, where the engine could be tried.

        Raises:
            CompileError: The build failed, or the engine generates nonsense; the cause and the
                remedy are named.
            StageError: The engine does not run.
            UnsupportedError: This machine cannot build the engine.
        """
        from pipeline.targets.tensorrt.build.build import build_engine
        from pipeline.targets.tensorrt.trial.first_tokens import try_engine

        facts = build_engine(checkpoint, recipe, output, progress)
        generated = try_engine(output, progress, recipe.compile.tensorrt.lookahead)
        return facts if generated is None else {**facts, "smoke": generated}

    def next_steps(self, recipe: Recipe, folder: Path) -> Sequence[str]:  # noqa: ARG002
        """Returns none: the engine is served from its repository."""
        return ()

    def build_script(self, checkpoint: Artifact, recipe: Recipe) -> str:
        """Writes a bash script for a machine with the GPU, and TensorRT-LLM or Docker.

        Raises:
            RecipeError: ``compile.gpu`` is not in the table.
            CheckpointError: The checkpoint's ``config.json`` cannot be read.
        """
        from pipeline.targets.tensorrt.build.script import build_script

        return build_script(checkpoint, recipe)

    def given_files(self, directory: Path) -> Sequence[str]:
        """Names ``config.json``, ``engine.json``, the ``rankN.engine`` and ``SHA256SUMS``, if any.

        Raises:
            CompileError: One is missing or cannot be read.
        """
        from pipeline.targets.tensorrt.build.adopt import given_files

        return given_files(directory)

    def adopt(
        self,
        given: GivenEngine,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
    ) -> dict[str, Any]:
        """Takes the engine in and, where its GPU is here, tries it.

        Returns:
            As :meth:`compile` does; ``adopted``, which is true; and ``tools``, what it was built
            with.

        Raises:
            CompileError: It is damaged, another one, or generates nonsense.
            UnsupportedError: The GPU it was built on is not the recipe's.
            StageError: It does not run.
        """
        from pipeline.targets.tensorrt.build.adopt import adopt_engine, why_not_tried
        from pipeline.targets.tensorrt.trial.first_tokens import try_engine

        facts = adopt_engine(given, checkpoint, recipe, output, progress)
        if obstacle := why_not_tried(output, inspect_machine()):
            progress.note(f"the engine was not tried: {obstacle}")
            return facts
        generated = try_engine(output, progress, recipe.compile.tensorrt.lookahead)
        return facts if generated is None else {**facts, "smoke": generated}

    def evaluation(self, recipe: Recipe) -> EngineEvaluation | NotMeasured:
        """Measures on a machine that has a GPU for every rank, and TensorRT-LLM or Docker."""
        from pipeline.targets.tensorrt.trial.perplexity import engine_evaluation

        return engine_evaluation(recipe)

    def triton_model(self, recipe: Recipe, engine: Mapping[str, Any]) -> EngineModel:
        """Returns the engine model of TensorRT-LLM's C++ backend.

        Args:
            recipe: ``serve`` and ``compile`` are read.
            engine: ``config.json`` of the engine.
        Raises:
            RepositoryError: The backend could not serve this engine.
            UnsupportedError: The recipe's KV cache is too small for one sequence.
        """
        from pipeline.targets.tensorrt.serve.backend import tensorrt_engine

        return tensorrt_engine(recipe, engine)

    def engine_problems(
        self, model: proto.ModelConfig, directory: Path, config: Mapping[str, Any]
    ) -> Iterator[str]:
        """Names what the C++ backend would trip over, or correct without saying so."""
        from pipeline.targets.tensorrt.serve.validate import engine_problems

        return engine_problems(model, directory, config)

    def server(self, repository: Path, log: LogPlace, options: ServerOptions) -> RunningServer:
        """Makes the server: a container that can read the engine, or in place inside one.
        Raises:
            UsageError: The number of GPUs is not the engine's number of ranks.
            UnsupportedError: This machine cannot serve the engine; the message has the command for
                one that can.
        """
        from pipeline.targets.tensorrt.serve.launch import free_endpoints, patience, plan_launch
        from pipeline.targets.tensorrt.serve.server import LaunchedServer

        launch = plan_launch(
            repository,
            free_endpoints(options),
            devices=options.devices,
            orchestrator=options.orchestrator,
            mpirun=options.mpirun,
            exit_timeout_s=patience(options),
        )
        return LaunchedServer(repository, launch, log_file=log)

    def serve_command(self, repository: Path, options: ServerOptions) -> ServeCommand:
        """Returns the command that serves the repository in a container, or in place inside one.
        Raises:
            UsageError: The number of GPUs is not the engine's number of ranks.
            UnsupportedError: No known image can read the engine.
        """
        from pipeline.targets.tensorrt.serve.launch import (
            docker_launch,
            endpoints,
            inside_container,
            local_launch,
            patience,
        )

        build = local_launch if inside_container() else docker_launch
        return build(
            repository,
            endpoints(options),
            devices=options.devices,
            orchestrator=options.orchestrator,
            mpirun=options.mpirun,
            exit_timeout_s=patience(options),
        )

    def compose(self, repository: Path, options: ServerOptions) -> str:
        """Writes a compose file of the pinned image.

        Raises:
            UsageError: The number of GPUs is not the engine's number of ranks.
            UnsupportedError: No known image can read the engine.
        """
        from pipeline.targets.tensorrt.serve.compose import compose_file
        from pipeline.targets.tensorrt.serve.launch import docker_launch, endpoints, patience

        launch = docker_launch(
            repository,
            endpoints(options),
            devices=options.devices,
            orchestrator=options.orchestrator,
            mpirun=options.mpirun,
            exit_timeout_s=patience(options),
        )
        return compose_file(repository, launch, options.devices, orchestrator=options.orchestrator)

    def contained(self, repository: Path, exit_timeout_s: str) -> Contained:
        """Describes the pinned image that can read the engine, with a tritonserver per rank.

        Raises:
            CompileError: The engine's ``engine.json`` is missing or not of this version.
            RepositoryError: The engine's ``config.json`` is missing or does not say its ranks.
            UnsupportedError: No known image can read the engine.
        """
        from pipeline.targets.tensorrt.serve.container import MOUNT, server_command
        from pipeline.targets.tensorrt.serve.launch import (
            engine_manifest,
            engine_ranks,
            serving_container,
        )

        ranks = engine_ranks(repository)
        several = server_command(ranks, exit_timeout_s=exit_timeout_s, mpirun=True)
        return Contained(
            image=serving_container(engine_manifest(repository)).image,
            dockerfile=None,
            builder="docker/build-gpu.Dockerfile",
            command=server_command(ranks, exit_timeout_s=exit_timeout_s),
            arguments=(),
            spread=several,
            mount=MOUNT,
            shared_memory=2 << 30,
            gpus=ranks,
            finishes=ranks == 1,
            checks=False,
        )

    def findings(self) -> list[Diagnosis]:
        """Says whether this machine can compile and serve, and what is missing."""
        from pipeline.targets.tensorrt.doctor import findings

        return findings()


if TYPE_CHECKING:
    _keeps_the_protocol: Target = TensorRtTarget()
