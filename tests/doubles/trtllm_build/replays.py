"""Failures of the real tool, by their recorded messages; nothing here fails for a reason."""

from __future__ import annotations

import os
import signal
import sys

TRT_OOM = """\
[TRT] [W] Requested amount of GPU memory (24793579520 bytes) could not be allocated. There may not \
be enough free memory for allocation to succeed.
[TRT] [E] [virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (Requested size \
was 24793579520 bytes.)
[TRT] [E] IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any \
implementation for node {ForeignNode[LLaMAForCausalLM/transformer/layers/0/input_layernorm]}.)
Traceback (most recent call last):
AssertionError: Engine building failed, please check the error log."""
NO_IMPLEMENTATION = """\
[TRT] [E] IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any \
implementation for node {ForeignNode[LLaMAForCausalLM/transformer/layers/0/attention/qkv]}.)
Traceback (most recent call last):
AssertionError: Engine building failed, please check the error log."""
NO_TACTIC = """\
terminate called after throwing an instance of 'tensorrt_llm::common::TllmException'
  what():  [TensorRT-LLM][ERROR] Assertion failed: No valid weight only groupwise GEMM tactic(It \
is usually caused by the failure to execute all candidate configurations of the CUTLASS kernel, \
please pay attention to the warning information when building the engine.)"""
TORCH_OOM = """\
Traceback (most recent call last):
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total \
capacity of 23.55 GiB of which 201.19 MiB is free."""
WORKER_KILLED = """\
concurrent.futures.process.BrokenProcessPool: A process in the process pool was terminated \
abruptly while the future was running or pending.
AssertionError: Engine building failed, please check error log."""
DISK_FULL = """\
Traceback (most recent call last):
OSError: [Errno 28] No space left on device"""
OLD_DRIVER = """\
Traceback (most recent call last):
RuntimeError: The NVIDIA driver on your system is too old (found version 12040)."""
PLUGIN_SM = """\
Traceback (most recent call last):
NotImplementedError: gemm_swiglu_plugin=fp8 is not supported on SM 100."""
VERSION = """\
[TRT] [E] IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion \
stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: \
239, Serialized Engine Version: 240)"""
TIMING_CACHE = """\
[TRT-LLM] [W] No timing cache found in the given builder config, skip saving.
Traceback (most recent call last):
AssertionError: Failed to save timing cache."""
NO_DOCKER_GPU = """\
docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]]."""
NO_DAEMON = """\
docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon \
running?"""

MESSAGES = {
    "gpu-memory": TRT_OOM,
    "torch-memory": TORCH_OOM,
    "no-implementation": NO_IMPLEMENTATION,
    "no-tactic": NO_TACTIC,
    "worker-killed": WORKER_KILLED,
    "disk-full": DISK_FULL,
    "old-driver": OLD_DRIVER,
    "plugin-sm": PLUGIN_SM,
    "version": VERSION,
    "timing-cache": TIMING_CACHE,
    "docker-gpu": NO_DOCKER_GPU,
    "docker-daemon": NO_DAEMON,
}


def replay(name: str) -> int:
    """Prints a failure and returns its exit code; ``killed`` ends this process by SIGKILL."""
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print(MESSAGES[name], file=sys.stderr, flush=True)
    return 125 if name.startswith("docker") else 134 if name == "no-tactic" else 1
