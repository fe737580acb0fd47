"""Why ``trtllm-build`` failed, and what to do about it, from its log and exit code.

The messages are TensorRT-LLM 1.2's, TensorRT 10's and the kernel's own; those that serving can meet
as well are in :mod:`pipeline.targets.tensorrt.causes`.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.formats import FORMATS
from pipeline.targets.tensorrt.causes import MACHINE, RUNTIME, known
from pipeline.targets.tensorrt.gpus import MIN_SM
from pipeline.targets.tensorrt.plan.facts import NO_INTEGER_FORMATS
from pipeline.targets.tensorrt.plan.overrides import MIN_FP8_SM
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER, TENSORRT_LLM

# Exit codes of a process that the kernel killed, seen directly and through a shell or Docker.
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
LOG_LINE_WIDTH = 300


@dataclass(frozen=True)
class Failure:
    """A known or guessed cause.

    Attributes:
        why: The cause, as a sentence.
        fix: What to do about it.
        line: The line of the log that gave it away; empty when the exit code did.
    """

    why: str
    fix: str
    line: str = ""


_HOST_MEMORY = Failure(
    why="The system ended the build; that is nearly always the kernel's out-of-memory killer, "
    "because the build holds the weights of every rank it works on in host memory",
    fix="Free host memory or add swap, or build fewer ranks at once (compile.tensorrt.workers: 1); "
    "dmesg names the victim",
)
_LESS_MEMORY = (
    "Lower compile.max_batch_size or compile.max_num_tokens, raise compile.tensor_parallel, or "
    "stop what else uses the GPU (nvidia-smi)"
)
_EXPORT_AGAIN = (
    "Quantize again with this pipeline and the same compile.tensor_parallel and "
    "compile.pipeline_parallel; a checkpoint cannot be repaired by hand"
)
_NEED_FP8 = " and ".join(row.name for row in FORMATS.values() if row.needs_fp8)
_RIGHT_VERSION = f"Use TensorRT-LLM {TENSORRT_LLM}: {DEFAULT_CONTAINER.image}"

CAUSES = (
    known(
        r"error: (unrecognized arguments|argument --\S+: (invalid|expected)|ambiguous option)",
        f"trtllm-build refuses its arguments: it is not the one of TensorRT-LLM {TENSORRT_LLM}",
        _RIGHT_VERSION,
    ),
    *MACHINE,
    known(
        r"The container name \S+ is already in use",
        "Another build of the same output is running, or was left behind",
        "Wait for it, or remove it: docker ps, docker rm --force NAME",
    ),
    known(
        r"SmoothQuant is not supported on SM>=100|Per-channel or per-token scaling is not supported"
        r" on SM>=100",
        "TensorRT-LLM has no INT8 SmoothQuant kernels for Blackwell data-center GPUs "
        "(SM 100 to 119)",
        f"Set quantize.format to {NO_INTEGER_FORMATS} for this GPU, "
        "or build on Ampere, Ada or Hopper",
    ),
    known(
        r"INT8/INT4 quantization is not supported on SM>=100",
        "TensorRT-LLM has no INT8 or INT4 kernels, nor an INT8 KV cache, for Blackwell data-center "
        "GPUs (SM 100 to 119)",
        f"Set quantize.format to {NO_INTEGER_FORMATS} and quantize.kv_cache to fp8 or null "
        "for this GPU, or build on Ampere, Ada or Hopper",
    ),
    known(
        r"\bis not supported on SM ?\d+|[Uu]nsupported (SM|compute capability|arch)"
        r"|W4A\(fp\)8 kernel is unsupported|no kernel image is available"
        r"|FP8 .*(only supported|not supported).*(SM|Ada|Hopper)"
        r"|Target GPU SM \d+ is not supported",
        "This GPU has no kernel for the format or a plugin",
        f"{_NEED_FP8} need SM {MIN_FP8_SM} or later, everything needs SM {MIN_SM} or later; "
        "choose another quantize.format or GPU",
    ),
    known(
        r"Required but not provided tensors",
        "The checkpoint lacks tensors that its own config.json requires",
        _EXPORT_AGAIN,
    ),
    known(
        r"Encounter error '.*' for parameter|value updated is not the same shape",
        "A tensor of the checkpoint has another shape than TensorRT-LLM derives from config.json; "
        "for AWQ that happens when a dimension is not divisible by group size times "
        "tensor_parallel, because the layer is then padded",
        f"Lower compile.tensor_parallel or quantize.group_size. {_EXPORT_AGAIN}",
    ),
    known(
        r"unexpected keyword argument|Extra inputs are not permitted",
        "config.json of the checkpoint has a key that this TensorRT-LLM does not know",
        f"{_RIGHT_VERSION}, and quantize again",
    ),
    known(
        r"Unsupported model architecture|has no attribute '(seq_length|qwen_type|rotary_base)'"
        r"|assert os\.path\.isfile\(.*(weights|safetensors)",
        "The checkpoint is not one that this TensorRT-LLM can load",
        _EXPORT_AGAIN,
    ),
    known(
        r"Failed to save timing cache|[Tt]iming cache .*(mismatch|corrupt|incompatible)",
        "The timing cache belongs to another GPU or TensorRT, or is damaged",
        "Delete the .cache files in the store's timing folder and run again",
    ),
    *RUNTIME,
    known(
        r"[Nn]o space left on device|Disk quota exceeded|Errno 28",
        "The disk is full; an engine is about as large as its checkpoint",
        "Free space, or choose another disk with --build-dir",
    ),
    known(
        r"Cannot allocate memory|std::bad_alloc|MemoryError"
        r"|terminated abruptly|BrokenProcessPool",
        _HOST_MEMORY.why,
        _HOST_MEMORY.fix,
    ),
    known(
        r"No valid weight only (groupwise )?GEMM tactic|No valid \S* ?GEMM tactic"
        r"|Have not found (any )?valid (GEMM config|configuration)",
        "No GEMM kernel fits a weight of this shape and group size on this GPU",
        "Use quantize.group_size 64 or 128, lower compile.max_num_tokens, or lower "
        "compile.tensor_parallel",
    ),
    known(
        r"Could not find any implementation for node|Error Code 10",
        "TensorRT found no kernel for a layer; most often one did not fit into GPU memory",
        f"{_LESS_MEMORY}. If memory is plentiful, report the node that build.log names",
    ),
    known(
        r"PermissionError|[Pp]ermission denied",
        "A file or folder may not be used",
        "Look at its owner and mode; in a container, also whether SELinux enforces on this machine "
        "(getenforce)",
    ),
    known(
        r"contradict|kv_cache_type.*paged_kv_cache|plugin .*requires|AssertionError",
        "TensorRT-LLM refuses this combination of options",
        "Read the last lines of the log; report it with the recipe, since the pre-flight should "
        "have said so",
    ),
)


def explain_failure(lines: Iterable[str], returncode: int) -> Failure:
    """Finds the most telling cause of a failed build, or of a script that runs an engine.

    Args:
        lines: The log, or its last part.
        returncode: As ``subprocess`` gives it: negative for a signal.

    Returns:
        The cause; for one that is not known, how it ended and the last error in the log.
    """
    log = [line.strip() for line in lines]
    generic = CAUSES[-1]
    for pattern, why, fix in CAUSES[:-1]:
        if (line := _first(pattern, log)) is not None:
            return Failure(why, fix, line)
    if returncode in KILLED:
        return _HOST_MEMORY
    if (line := _first(generic[0], log)) is not None:
        return Failure(generic[1], generic[2], line)
    last = _last_error(log)
    how = _ending(returncode)
    why = f"It {how} with: {last}" if last else f"It {how} without a message"
    return Failure(why, "Read the log; this cause is not among the known ones", last)


def _first(pattern: re.Pattern[str], log: Sequence[str]) -> str | None:
    return next((line[:LOG_LINE_WIDTH] for line in log if pattern.search(line)), None)


def _last_error(log: Sequence[str]) -> str:
    telling = re.compile(r"^\w[\w.]*(Error|Exception)\b|\[E\]|\bERROR\b|^docker: ")
    found = [line for line in log if telling.search(line)]
    return (found or [line for line in log if line] or [""])[-1][:LOG_LINE_WIDTH]


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"
