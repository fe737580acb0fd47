"""Finds in the server's log why it did not start with a TensorRT engine."""

from __future__ import annotations

import re

from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER
from pipeline.triton.failure import Cause, find_cause

_KNOWN = (
    (
        r"Version tag does not match|expecting library version|deserialize cuda engine",
        "The engine was built with another TensorRT or for another GPU",
        f"Build and serve in the same image on the same GPU model: {DEFAULT_CONTAINER.image}",
    ),
    (
        r"unable to find backend library for backend 'tensorrtllm'",
        "This Triton has no tensorrtllm backend",
        f"Serve in {DEFAULT_CONTAINER.image}",
    ),
    (
        r"Both encoder and decoder model paths are empty",
        "The engine is not where gpt_model_path says",
        "Mount the repository at /models",
    ),
    (
        r"must be large enough to process at least 1 sequence",
        "The KV cache is too small for one sequence of max_seq_len",
        "Raise serve.max_tokens_in_paged_kv_cache, or compile with a smaller max_seq_len",
    ),
    (
        r"[Oo]ut of memory|OutOfMemory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation",
        "The GPU's memory is too small, or another process holds some of it",
        "Stop that process (nvidia-smi lists it), or compile with a smaller max_num_tokens",
    ),
    (
        r"Cannot find parameter with name: (\S+)",
        "tensorrt_llm/config.pbtxt lacks a parameter that the backend needs",
        "Write the repository again with trtllm-pipeline run",
    ),
    (
        r"could not select device driver|nvidia-container-cli: |unknown or invalid runtime name",
        "Docker cannot reach the GPU",
        "Install the NVIDIA Container Toolkit and restart docker",
    ),
    (
        r"pull access denied|manifest unknown|manifest for \S+ not found|no such host",
        "The image cannot be pulled",
        "Check the network and docker login; the log names the image",
    ),
    (
        r"port is already allocated|address already in use",
        "A port is in use",
        "Stop the program that listens there, or choose other ports",
    ),
    (
        r"Conflict\. The container name",
        "A server on this port is already running",
        "Stop it, or choose another --grpc-port",
    ),
    (
        r"not enough slots available",
        "mpirun sees fewer CPU cores than the engine has ranks",
        "Give the container at least one core per rank",
    ),
)


def launch_cause(log: str) -> Cause:
    """The most telling reason in the log of docker, mpirun and tritonserver together."""
    for pattern, why, fix in _KNOWN:
        if re.search(pattern, log):
            return Cause(why, fix)
    return find_cause(log)
