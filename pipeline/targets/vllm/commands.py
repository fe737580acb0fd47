"""What runs the folder: ``vllm serve``, Triton's vLLM backend, and a compose file of the latter.

The repository is that of upstream's ``samples/model_repository`` in triton-inference-server's
vllm_backend: ``model.json`` holds arguments of vLLM's ``AsyncEngineArgs``, and nothing else.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.recipe.schema import Recipe

FOLDER = "model"
"""The Hugging Face folder, in the export."""
REPOSITORY, MODEL = "triton", "vllm_model"
"""The model repository of Triton's vLLM backend, and its one model, upstream's own name."""
MOUNT = "/export"
"""Where a container finds the export."""
IMAGE = "nvcr.io/nvidia/tritonserver:26.06-vllm-python-py3"
"""It has vLLM 0.22.1; any later one does."""
HOST, PORT = "127.0.0.1", 8000
_OPTIONAL = {"stream": "TYPE_BOOL", "sampling_parameters": "TYPE_STRING"}
"""Inputs of upstream's backend besides the text, those that all of its versions have."""


@dataclass(frozen=True)
class Served:
    """The engine arguments of a recipe, by their names in vLLM's ``EngineArgs``.

    Attributes:
        dtype: The checkpoint's, so that nothing is rounded while it is loaded.
        max_model_len: Tokens of a prompt and its answer together.
        max_num_seqs: Sequences that are decoded together.
        max_num_batched_tokens: Tokens of a step, which vLLM wants no smaller than the sequences.
        gpu_memory_utilization: The share of the GPU's memory.
        tensor_parallel_size: GPUs that share each layer.
        pipeline_parallel_size: GPUs that share the layers among them.
    """

    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    tensor_parallel_size: int
    pipeline_parallel_size: int

    @classmethod
    def of(cls, recipe: Recipe) -> Served:
        """Takes the recipe's sizes."""
        sizes = recipe.compile
        return cls(
            dtype=recipe.dtype,
            max_model_len=sizes.max_seq_len,
            max_num_seqs=sizes.max_batch_size,
            max_num_batched_tokens=max(sizes.max_num_tokens, sizes.max_batch_size),
            gpu_memory_utilization=sizes.vllm.gpu_memory_utilization,
            tensor_parallel_size=sizes.tensor_parallel,
            pipeline_parallel_size=sizes.pipeline_parallel,
        )

    def arguments(self) -> dict[str, Any]:
        """Returns them by name; one GPU is vLLM's own default and left out."""
        values = vars(self)
        return {
            name: value
            for name, value in values.items()
            if not (name.endswith("parallel_size") and value == 1)
        }


def serve_words(served: Served) -> list[str]:
    """Returns the words of ``vllm serve``, for the folder of the export."""
    words = ["vllm", "serve", FOLDER]
    for name, value in served.arguments().items():
        words += [f"--{name.replace('_', '-')}", f"{value}"]
    return [*words, "--host", HOST, "--port", str(PORT)]


def docker_words() -> list[str]:
    """Returns the words that start Triton's vLLM backend on all GPUs, from the export."""
    words = ["docker", "run", "--rm", "--gpus", "all", "--shm-size", "1g"]
    for port in (8000, 8001, 8002):
        words += ["-p", f"{HOST}:{port}:{port}"]
    words += ["-v", f"$PWD:{MOUNT}:ro", IMAGE]
    return [*words, "tritonserver", f"--model-repository={MOUNT}/{REPOSITORY}"]


def shell(words: list[str]) -> str:
    """Joins words for a shell; ``$PWD`` stays a variable, whatever the folder is called."""
    return " ".join(f'"{word}"' if word.startswith("$PWD") else shlex.quote(word) for word in words)


def next_steps(recipe: Recipe, folder: Path) -> list[str]:
    """Returns the lines that serve an export.

    Args:
        recipe: Whose sizes count.
        folder: Where it lies; the current directory needs no line of its own.
    """
    enter = [] if folder == Path() else [f"cd {shlex.quote(str(folder))}"]
    return [*enter, shell(serve_words(Served.of(recipe)))]


def write_repository(served: Served, output: Path) -> None:
    """Writes the model repository of Triton's vLLM backend.

    Args:
        served: The engine's arguments.
        output: The export.
    """
    from tritonclient.grpc import model_config_pb2 as proto

    from pipeline.triton.config import to_text

    config = proto.ModelConfig(name=MODEL, backend="vllm", max_batch_size=0)
    config.model_transaction_policy.decoupled = True
    # The backend would complete them, but not in a server that was told to complete nothing.
    config.input.add(name="text_input", data_type=proto.TYPE_STRING, dims=[1])
    for name, kind in _OPTIONAL.items():
        tensor = config.input.add(name=name, dims=[1], optional=True)
        tensor.data_type = getattr(proto, kind)
    config.output.add(name="text_output", data_type=proto.TYPE_STRING, dims=[-1])
    # Which GPUs it takes is vLLM's to say, also where it takes several.
    config.instance_group.add(count=1, kind=proto.ModelInstanceGroup.KIND_MODEL)
    arguments = {"model": f"{MOUNT}/{FOLDER}", **served.arguments()}
    version = output / REPOSITORY / MODEL / "1"
    version.mkdir(parents=True)
    (version / "model.json").write_text(f"{json.dumps(arguments, indent=2)}\n", encoding="utf-8")
    (version.parent / "config.pbtxt").write_text(to_text(config), encoding="utf-8")


def write_compose(output: Path) -> None:
    """Writes ``compose.yaml``: Triton's vLLM backend on loopback, the export read-only.

    Args:
        output: The export.
    """
    import yaml

    service = {
        "image": IMAGE,
        "command": ["tritonserver", f"--model-repository={MOUNT}/{REPOSITORY}"],
        "init": True,
        "restart": "on-failure",
        "shm_size": "1g",
        "ports": [f"{HOST}:{port}:{port}" for port in (8000, 8001, 8002)],
        "volumes": [{"type": "bind", "source": ".", "target": MOUNT, "read_only": True}],
        "deploy": {
            "resources": {
                "reservations": {
                    "devices": [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
                }
            }
        },
    }
    text = yaml.safe_dump({"services": {"triton": service}}, sort_keys=False, width=1000)
    (output / "compose.yaml").write_text(text, encoding="utf-8")
