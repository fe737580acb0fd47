"""A stand-in for TensorRT-LLM in the processes that open an engine of the double."""

import os
import time

if os.environ.get("TRTLLM_BUILD_DOUBLE_HANG"):
    # As ranks do that wait for each other.
    time.sleep(600)


def mpi_rank() -> int:
    """The rank that the double of ``mpirun`` gave this process."""
    return int(os.environ.get("TRTLLM_BUILD_DOUBLE_RANK", "0"))
