"""Which environment variables reach a server's processes, and how many threads call its models.

Tritonserver and its Python models run code of a repository and talk to clients, so they get what
they can need and nothing else: a token for the Hub or a cloud's key in the environment of whoever
serves is none of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

PRIVATE = 0o077
"""The umask of a server: its log and its shared memory have what clients send and get."""

NAMES = frozenset(
    {
        *("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD"),
        *("HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE"),
        # Which GPUs there are.
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
        *("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "SOURCE_DATE_EPOCH"),
    }
)

# Of threads, of memory, and of the libraries that compute.
PREFIXES = (
    *("LC_", "OMP_", "GOMP_", "KMP_", "TBB_", "MALLOC_", "GLIBC_"),
    *("OPENVINO_", "OV_", "ONEDNN_", "DNNL_", "MKL_", "OPENBLAS_"),
)

# Triton's own.
DEFAULT_THREADS = 32
_MOST_REQUESTS = re.compile(
    r'key:\s*"max_concurrent_requests"\s*value\s*:?\s*\{\s*string_value:\s*"(\d+)"'
)


def passed_on(base: Mapping[str, str], names: Iterable[str] = ()) -> dict[str, str]:
    """Returns what a server gets of an environment.

    Args:
        base: The environment.
        names: Of further variables that it is to have.
    """
    wanted = NAMES.union(names)
    return {
        name: value for name, value in base.items() if name in wanted or name.startswith(PREFIXES)
    }


def calling_threads(repository: Path) -> int:
    """Returns how many threads Triton needs for the calls that Python models make of other models.

    Each call holds one until its model's first response. Triton's 32 are fewer than the requests
    that a model in Python takes at a time, and then all streams stall behind those that wait.

    Args:
        repository: Its models' ``config.pbtxt`` say in ``max_concurrent_requests`` how many
            requests they take.
    """
    counts = [DEFAULT_THREADS]
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text(encoding="utf-8", errors="replace")
        counts += [int(digits) for digits in _MOST_REQUESTS.findall(text)]
    return max(counts)
