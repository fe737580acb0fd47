"""How ModelOpt and transformers are run: offline, quiet and repeatably."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
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
# Up to this size one thread takes about a minute at most; two were up to six times slower where the
# other core was busy.
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
    with (
        _environment(_ENVIRONMENT),
        _offline_hub(),
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("always")
        yield
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

    Small models run on one thread. Larger ones run on all, in an order that does not depend on how
    many these are; ARCHITECTURE.md (Artifacts) has what remains.

    Args:
        parameters: Elements of the model's weights.
    """
    torch = require("torch", "quantize")
    algorithms, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    one = parameters <= SINGLE_THREAD_PARAMETERS
    # Said even where it changes nothing: until then MKL may use fewer threads when it sees fit.
    torch.set_num_threads(1 if one else threads)
    try:
        with contextlib.nullcontext() if one else _any_threads():
            yield
    finally:
        torch.use_deterministic_algorithms(algorithms)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _any_threads() -> Iterator[None]:
    from pipeline.source.threads import OnOneThread, keeps_another_order, mkl_order

    order = mkl_order()
    with _environment(order), OnOneThread():
        # Small models have no such order: it rounds the products of one row otherwise.
        if order and keeps_another_order():
            warnings.warn(
                "this process has computed a small model before this large one, so the last bits "
                "may depend on the number of threads; set MKL_CBWR=AUTO,STRICT ahead of it, or "
                "take a process of its own for each",
                stacklevel=2,
            )
        yield


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
