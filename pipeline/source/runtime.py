"""How ModelOpt and transformers are run: offline, quiet and repeatably."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from pipeline.dependencies import require
from pipeline.progress import Progress

# Said on every run, whatever the model: none of it concerns the checkpoint.
KNOWN_NOISE = re.compile(
    "|".join(
        (
            r"transformers version .* is incompatible with nvidia-modelopt",
            r"Cannot export tensorrt_llm checkpoint config due to the following error",
            r"Enable lm_head quantization",
            r"Skipping extension modelopt_cuda_ext",
            r"`?torch\.jit\.\w+`? is deprecated",
        )
    )
)
# The sums of a matrix product may depend on how many threads share it. Up to this size one thread
# takes about a minute at most; two were up to six times slower where the other core was busy.
SINGLE_THREAD_PARAMETERS = 50_000_000

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Without a fixed workspace cuBLAS may pick another algorithm on the next run.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


@contextlib.contextmanager
def offline_and_quiet(progress: Progress) -> Iterator[None]:
    """Keeps libraries off the network and off the terminal; their warnings become notes.

    ModelOpt prints to standard output, which belongs to ``--json``.
    """
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        with (
            _offline_hub(),
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    for message in dict.fromkeys(str(warning.message).strip() for warning in caught):
        if not KNOWN_NOISE.search(message):
            progress.note(f"warning: {message}")


@contextlib.contextmanager
def _offline_hub() -> Iterator[None]:
    # huggingface_hub reads the variable once, when it is imported.
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is None:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def deterministic(parameters: int) -> Iterator[None]:
    """Makes torch compute the same bits every time; leaves its settings as they were.

    Args:
        parameters: Elements of the model's weights. Small models run on one thread, which makes
            their checkpoint independent of the number of cores; larger ones are repeatable on
            machines of equally many.
    """
    torch = require("torch", "quantize")
    algorithms, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    if parameters <= SINGLE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms)
        torch.set_num_threads(threads)
