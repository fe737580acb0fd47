"""Finds in the server's log why it did not start with a TensorRT engine.

What building can meet as well is in :mod:`pipeline.targets.tensorrt.causes`.
"""

from __future__ import annotations

from pipeline.targets.tensorrt.causes import MACHINE, RUNTIME, known
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER
from pipeline.triton.failure import Cause, find_cause

_KNOWN = (
    *MACHINE,
    known(
        r"unable to find (backend library for backend 'tensorrtllm'|'libtriton_tensorrtllm\.so'"
        r"|'tensorrtllm/model\.py')"
        r"|\b(libtriton_tensorrtllm\w*|libnvinfer_plugin_tensorrt_llm|libtensorrt_llm)\.so[\d.]*: "
        r"cannot open",
        "This Triton has no tensorrtllm backend, or the backend not its libraries",
        f"Serve in {DEFAULT_CONTAINER.image}; the images whose names end in -py3 alone lack them",
    ),
    known(
        r"Both encoder and decoder model paths are empty",
        "The engine is not where gpt_model_path says",
        "Mount the repository at /models",
    ),
    known(
        r"must be large enough to process at least 1 sequence",
        "The KV cache is too small for one sequence of max_seq_len",
        "Raise serve.max_tokens_in_paged_kv_cache, or compile with a smaller max_seq_len",
    ),
    known(
        r"Cannot find parameter with name: (\S+)",
        "tensorrt_llm/config.pbtxt lacks a parameter that the backend needs",
        "Write the repository again with trtllm-pipeline run",
    ),
    known(
        r"port is already allocated|address already in use",
        "A port is in use",
        "Stop the program that listens there, or choose other ports",
    ),
    known(
        r"Conflict\. The container name",
        "A server on this port is already running",
        "Stop it, or choose another --grpc-port",
    ),
    *RUNTIME,
)


def launch_cause(log: str) -> Cause:
    """Finds the most telling reason in the log of docker, mpirun and tritonserver together."""
    for pattern, why, fix in _KNOWN:
        if pattern.search(log):
            return Cause(why, fix)
    return find_cause(log)
