"""Causes of failed builds from messages as they were recorded."""

from __future__ import annotations

import pytest

from pipeline.targets.tensorrt.build.failures import CAUSES, explain_failure

# (line of a log, part of the cause, part of the remedy)
RECORDED = [
    (
        "trtllm-build: error: unrecognized arguments: --use_inflight_batching",
        "refuses its arguments",
        "1.2.1",
    ),
    (
        "trtllm-build: error: argument --gemm_plugin: invalid choice: 'int8' (choose from 'auto')",
        "refuses its arguments",
        "1.2.1",
    ),
    ("ValueError: max_workers must be greater than 0", "sees no GPU", "CUDA_VISIBLE_DEVICES"),
    ("RuntimeError: No CUDA GPUs are available", "sees no GPU", "nvidia-smi"),
    (
        "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
        "sees no GPU",
        "nvidia-smi",
    ),
    (
        (
            "[TRT] [E] createInferBuilder: Error Code 6: API Usage Error (CUDA initialization "
            "failure with error: 35. CUDA driver version is insufficient for CUDA runtime version)"
        ),
        "driver is older",
        "branch 580",
    ),
    ("RuntimeError: INT8/INT4 quantization is not supported on SM>=100.", "no INT8 or INT4", "fp8"),
    ("RuntimeError: SmoothQuant is not supported on SM>=100.", "SmoothQuant kernels", "fp8"),
    (
        "RuntimeError: Required but not provided tensors:{'transformer.ln_f.weight'}",
        "lacks tensors",
        "Quantize again",
    ),
    (
        (
            "RuntimeError: Encounter error 'The value updated is not the same shape as the "
            "original. Updated: (64, 128), original: (128, 128)' for parameter "
            "'transformer.layers.0.mlp.fc.weight'"
        ),
        "another shape",
        "compile.tensor_parallel",
    ),
    (
        "TypeError: QuantConfig.__init__() got an unexpected keyword argument 'bits'",
        "a key that this TensorRT-LLM does not know",
        "quantize again",
    ),
    (
        (
            "[TRT] [E] 2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory "
            "(no further information)"
        ),
        "memory is too small",
        "max_num_tokens",
    ),
    (
        (
            "[E] Error[1]: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime "
            "(out of memory)"
        ),
        "memory is too small",
        "max_num_tokens",
    ),
    ("OSError: [Errno 28] No space left on device", "disk is full", "--build-dir"),
    ("MemoryError", "out-of-memory killer", "workers"),
    (
        (
            'docker: Error response from daemon: Conflict. The container name "/trtllm-build-0123" '
            'is already in use by container "89ab".'
        ),
        "left behind",
        "docker rm",
    ),
    (
        (
            "docker: Error response from daemon: manifest for nvcr.io/nvidia/tritonserver:26.99 "
            "not found: manifest unknown: manifest unknown."
        ),
        "cannot fetch the image",
        "docker pull",
    ),
]


@pytest.mark.parametrize(("line", "why", "fix"), RECORDED)
def test_a_recorded_message(line: str, why: str, fix: str) -> None:
    noise = ["[TRT-LLM] [I] Set PluginConfig.context_fmha to True.", "Traceback (most recent):"]
    failure = explain_failure([*noise, line, "AssertionError: Engine building failed"], 1)
    assert why in failure.why
    assert fix in failure.fix
    assert failure.line == line[:300]


def test_the_specific_cause_wins_over_what_it_drags_along() -> None:
    log = [
        "[TRT] [E] Error Code 10: Internal Error (Could not find any implementation for node x)",
        "[TRT] [E] Error Code 2: OutOfMemory (Requested size was 1 bytes.)",
        "AssertionError: Engine building failed, please check the error log.",
    ]
    assert "memory is too small" in explain_failure(log, 1).why
    assert "no kernel for a layer" in explain_failure(log[:1], 1).why
    assert "refuses this combination" in explain_failure(log[2:], 1).why


@pytest.mark.parametrize("code", [-9, 137])
def test_killed_without_a_word(code: int) -> None:
    failure = explain_failure(["[TRT-LLM] [I] Build TensorRT engine Unnamed Network 0"], code)
    assert "out-of-memory killer" in failure.why
    assert failure.line == ""


@pytest.mark.parametrize(
    ("log", "code", "why"),
    [
        (["KeyError: 'type'"], 1, "It ended with exit code 1 with: KeyError: 'type'"),
        ([], -15, "It was ended by SIGTERM without a message"),
        (["about to start"], 3, "It ended with exit code 3 with: about to start"),
    ],
)
def test_an_unknown_cause_is_quoted(log: list[str], code: int, why: str) -> None:
    assert explain_failure(log, code).why == why


def test_a_good_log_matches_no_cause() -> None:
    good = [
        "[TensorRT-LLM] TensorRT LLM version: 1.2.1",
        (
            "[TRT-LLM] [W] padding removal and fMHA are both enabled, max_input_len is not "
            "required and will be ignored"
        ),
        (
            "[TRT-LLM] [W] FP8 Context FMHA is disabled because it must be used together with the "
            "fp8 quantization workflow."
        ),
        (
            "[TRT] [I] Global timing cache in use. Profiling results in this builder pass will be "
            "stored."
        ),
        (
            "[TRT] [I] [MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 0 "
            "MiB, GPU 150 MiB"
        ),
        "[TRT] [W] Unused Input: position_ids",
        "[TRT-LLM] [I] Compute capability: (8, 9)",
    ]
    assert [line for line in good for pattern, _, _ in CAUSES if pattern.search(line)] == []
