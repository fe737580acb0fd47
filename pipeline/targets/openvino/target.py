"""The CPU target behind the protocol of :mod:`pipeline.targets.base`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import Requirements, require, versions
from pipeline.economics.hardware import Setting
from pipeline.errors import UsageError
from pipeline.models.facts import ModelFacts
from pipeline.processor import processor_name
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import (
    Contained,
    Diagnosis,
    EngineEvaluation,
    Explanation,
    OwnType,
    Room,
    ServeCommand,
    Target,
)
from pipeline.targets.built_here import BuiltHere
from pipeline.targets.openvino.refusals import refuse_unsupported
from pipeline.triton.parameters import EngineModel
from pipeline.triton.ports import is_loopback

if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2 as proto

    from pipeline.triton.log import LogPlace
    from pipeline.triton.running import RunningServer, ServerOptions

# Raised when the same checkpoint gives another graph; part of the engine's cache key.
GRAPH_VERSION = "2"
PACKAGES = ("openvino", "openvino-genai", "numpy")
ENGINE_FILES = ("openvino_model.xml", "openvino_model.bin")


class OpenVinoTarget(BuiltHere):
    """Compiles for the CPU with OpenVINO."""

    no_script = (
        "there is no build script for an engine of the CPU",
        "It is compiled wherever the recipe runs, without a GPU",
    )
    not_taken_in = (
        "CPU engines cannot be taken in: they are built in seconds where they are served",
        "Such an engine is the checkpoint as a graph, and nothing in it says which checkpoint",
    )

    name = "openvino"
    own_types: Mapping[str, OwnType] = MappingProxyType({})
    rounds_activations = False
    own_server = False
    reads_source = False
    takes_zero_points = True
    takes_input_order = True

    def needs(self, recipe: Recipe) -> Requirements:  # noqa: ARG002
        """Lists the packages for OpenVINO and the wheel that holds tritonserver."""
        return [(name, "cpu") for name in ("openvino", "openvino_genai", "ml_dtypes", "pytriton")]

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses formats, lengths and precisions that the CPU target cannot serve faithfully.

        Raises:
            UnsupportedError: Naming the recipe's key, the reason and the remedy.
        """
        refuse_unsupported(recipe, facts)

    def explain(self, recipe: Recipe, facts: ModelFacts) -> Explanation:
        """Describes the engine and what it takes of this machine's memory."""
        from pipeline.targets.openvino.explain import explain

        return explain(recipe, facts)

    def setting(self, recipe: Recipe, facts: ModelFacts, remembered: Path) -> Setting | None:
        """Describes this machine by what its processor was measured to do."""
        from pipeline.economics.rates import processor
        from pipeline.targets.openvino.memory import kv_bytes_per_token, machine_memory
        from pipeline.targets.openvino.options import kv_cache_precision

        hardware = processor(remembered, machine_memory())
        per_token = kv_bytes_per_token(facts, kv_cache_precision(recipe))
        # Weights of 16 and 4 bits are multiplied in float32.
        return Setting(hardware, per_token, computes="float32", own=True) if hardware else None

    def room(self, recipe: Recipe, facts: ModelFacts) -> Room | None:
        """Says what fits into half of this machine's memory."""
        from pipeline.targets.openvino.memory import room

        return room(recipe, facts)

    def step_tokens(self, recipe: Recipe) -> int:
        """Returns what the engine's front takes in a step, which holds Python's lock."""
        from pipeline.targets.openvino.memory import step_tokens

        return step_tokens(recipe)

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """Returns ``compile`` without other targets' options; the ranks are the checkpoint's."""
        section = recipe.compile.read_by(self.name)
        del section["tensor_parallel"], section["pipeline_parallel"]
        return {"compile": section}

    def tools(self) -> Mapping[str, str]:
        """Returns the versions of OpenVINO, OpenVINO GenAI and NumPy, and of our graph."""
        return {"graph": GRAPH_VERSION, **versions(PACKAGES)}

    def compile(
        self,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        source: Path | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Writes ``openvino_model.xml``, ``openvino_model.bin`` and ``config.json``.

        The bytes depend only on the checkpoint, the recipe and :meth:`tools`.

        Args:
            checkpoint: A TensorRT-LLM checkpoint of any tensor and pipeline parallelism.
            recipe: ``compile`` gives limits and execution options.
            output: An empty directory.
            progress: Where the layers are counted.
            source: Is not read.

        Returns:
            ``target``, ``quant_algo``, ``engine_bytes``, ``max_batch_size``, ``max_seq_len`` and
            ``runtime``, the properties that the CPU plugin is opened with.

        Raises:
            CheckpointError: The checkpoint is not complete.
            CompileError: The checkpoint holds a format that the CPU does not execute.
            MissingDependencyError: OpenVINO is not installed.
        """
        require("openvino", "cpu")
        from pipeline.targets.openvino.engine import write_engine

        return write_engine(checkpoint, recipe, output, progress)

    def next_steps(self, recipe: Recipe, folder: Path) -> Sequence[str]:  # noqa: ARG002
        """Returns none: the engine is served from its repository."""
        return ()

    def evaluation(self, recipe: Recipe) -> EngineEvaluation:
        """Measures the engine itself, on every machine."""
        from pipeline.targets.openvino.measure import MeasuredHere
        from pipeline.targets.openvino.options import kv_cache_precision

        # One new token is generated behind each window.
        longest = recipe.compile.max_seq_len - 1
        decided = {
            "tools": self.tools(),
            # Kernels differ, and so does the order in which they add.
            "processor": processor_name(),
            "longest_window": longest,
        }
        return MeasuredHere(decided, longest, partial(kv_cache_precision, recipe))

    def triton_model(self, recipe: Recipe, engine: Mapping[str, Any]) -> EngineModel:
        """Returns the Python front of the engine."""
        from pipeline.targets.openvino.triton_model import openvino_engine

        return openvino_engine(recipe, engine)

    def engine_problems(
        self, model: proto.ModelConfig, directory: Path, config: Mapping[str, Any]
    ) -> Iterator[str]:
        """Names what the engine directory lacks."""
        place = model.parameters["gpt_model_path"].string_value
        if config.get("target") != self.name:
            yield f"{place}/config.json is not that of an engine for the CPU"
        for name in ENGINE_FILES:
            if not (directory / name).is_file():
                yield f"{place}/{name} is missing"

    def server(self, repository: Path, log: LogPlace, options: ServerOptions) -> RunningServer:
        """Makes the tritonserver of the ``nvidia-pytriton`` wheel, without a container.

        Raises:
            UsageError: An option for GPUs was given.
        """
        _refuse_gpu_options(repository, options)
        _refuse_open_http(options)
        from pipeline.targets.handed_on import named
        from pipeline.triton.server import TritonServer

        return TritonServer(
            repository,
            log_file=log,
            host=options.host,
            grpc_port=options.grpc_port,
            http_port=options.http_port,
            metrics_port=options.metrics_port,
            watchdog=options.watchdog,
            hung_after_s=options.hung_after_s,
            give_up_after_s=options.give_up_after_s,
            http=options.http,
            exit_timeout_s=_patience(options),
            variables=named(),
            tls=options.tls,
            key=options.key,
        )

    def serve_command(self, repository: Path, options: ServerOptions) -> ServeCommand:
        """Returns the lines of shell that start the wheel's server without a supervisor.

        Raises:
            UsageError: An option for GPUs was given.
            MissingDependencyError: nvidia-pytriton is not installed.
        """
        _refuse_gpu_options(repository, options)
        _refuse_open_http(options)
        from pipeline.triton.by_hand import by_hand

        ports = {
            "grpc_port": options.grpc_port,
            "http_port": options.http_port,
            "metrics_port": options.metrics_port,
        }
        return by_hand(
            repository,
            options.host,
            ports,
            _patience(options),
            http=options.http,
            tls=options.tls,
        )

    def compose(self, repository: Path, options: ServerOptions) -> str:
        """Writes a compose file of an image that ``docker/cpu.Dockerfile`` makes.

        Raises:
            UsageError: An option for GPUs was given.
        """
        _refuse_gpu_options(repository, options)
        from pipeline.targets.openvino.compose import compose_file

        if options.tls or options.key:
            raise UsageError(
                "--tls-cert and --key-from do not go with --print compose",
                why="The file would need the places of certificates and keys inside the container",
                fix="Leave them out, and add them to what is printed: volumes, environment and the "
                "command's options",
            )
        return compose_file(repository, options, _patience(options))

    def contained(self, repository: Path, exit_timeout_s: str) -> Contained:  # noqa: ARG002
        """Describes ``serve`` in the image that ``docker/cpu.Dockerfile`` makes."""
        from pipeline.targets.openvino.compose import IMAGE, MOUNT, SHARED_MEMORY, serve_words

        return Contained(
            image=IMAGE,
            dockerfile="docker/cpu.Dockerfile",
            builder="docker/build.Dockerfile",
            command=None,
            arguments=serve_words(exit_timeout_s),
            spread=None,
            mount=MOUNT,
            shared_memory=SHARED_MEMORY,
            gpus=0,
            finishes=True,
            checks=True,
        )

    def findings(self) -> list[Diagnosis]:
        """Says whether this machine can compile and serve, and what is missing."""
        from pipeline.targets.openvino.doctor import findings

        return findings()


def _patience(options: ServerOptions) -> int:
    from pipeline.triton.server import EXIT_TIMEOUT_S

    return EXIT_TIMEOUT_S if options.exit_timeout_s is None else options.exit_timeout_s


def _refuse_gpu_options(repository: Path, options: ServerOptions) -> None:
    if options.devices is not None or options.orchestrator or options.mpirun:
        raise UsageError(
            "--devices, --orchestrator and --mpirun are for repositories of the tensorrt target",
            where=str(repository),
            fix="Leave them out: this repository runs on the CPU, without a container",
        )


def _refuse_open_http(options: ServerOptions) -> None:
    if options.tls and options.http and not is_loopback(options.host):
        raise UsageError(
            "--http-port does not go with --tls-cert on an address that others reach",
            where=f"--host {options.host}",
            why="Triton's HTTP endpoint has no TLS, and asks nobody for a certificate",
            fix="Leave --http-port out, or listen on loopback behind a gateway that has TLS",
        )


if TYPE_CHECKING:
    _keeps_the_protocol: Target = OpenVinoTarget()
