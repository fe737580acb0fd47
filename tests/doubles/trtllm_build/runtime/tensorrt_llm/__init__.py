"""A stand-in for TensorRT-LLM in the processes that open an engine of the double."""

import os


def mpi_rank() -> int:
    """The rank that the double of ``mpirun`` gave this process."""
    return int(os.environ.get("TRTLLM_BUILD_DOUBLE_RANK", "0"))
