"""Why a program on the GPU machine failed, from texts that building and serving share.

The messages are those of Docker, the NVIDIA Container Toolkit, the CUDA driver, Open MPI, UCX,
NCCL, PyTorch, TensorRT and TensorRT-LLM. :data:`MACHINE` is what keeps any program from starting,
:data:`RUNTIME` what a program meets that did start. A table is searched from top to bottom, so a
cause stands above what it drags along in the same log.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER, TENSORRT_LLM


class Known(NamedTuple):
    """A cause that a text gives away.

    Attributes:
        pattern: Matches within one line.
        why: The cause, as a sentence without its full stop.
        fix: What to do about it, likewise.
    """

    pattern: re.Pattern[str]
    why: str
    fix: str


def known(pattern: str, why: str, fix: str) -> Known:
    """Makes a row of a table.

    Args:
        pattern: A regular expression, searched for within one line.
        why: The cause, as a sentence without its full stop.
        fix: What to do about it, likewise.
    """
    return Known(re.compile(pattern), why, fix)


_DRIVER = DEFAULT_CONTAINER.driver
_IMAGE = DEFAULT_CONTAINER.image
# See pipeline.targets.handed_on.
_HANDED_ON = "it is handed on to the container"

MACHINE = (
    known(
        r"unsatisfied condition: (cuda|driver|brand)",
        f"The GPU driver is older than CUDA {DEFAULT_CONTAINER.cuda} of the image needs",
        f"Update the driver to branch {_DRIVER} or later; an image cannot bring its own",
    ),
    known(
        r"[Ee]rror 803\b|system has unsupported display driver|[Dd]river/library version mismatch",
        "The driver's library and its kernel module are of different versions, as after an update "
        "without a restart, or where the container's own libraries come first",
        f"Restart the machine, or update the driver to branch {_DRIVER} or later",
    ),
    known(
        r"CUDA driver version is insufficient|driver on your system is too old"
        r"|forward compatibility was attempted|[Ee]rror 804\b",
        "The GPU driver is older than this CUDA needs",
        f"Update the driver to branch {_DRIVER} or later; data-center GPUs may use CUDA forward "
        "compatibility",
    ),
    known(
        r"[Ee]rror:? \(?802\b|system not yet initialized|SYSTEM_NOT_READY|SystemNotReady",
        "The GPUs hang on NVSwitch, whose fabric manager does not run",
        "Start it: systemctl start nvidia-fabricmanager, of exactly the driver's version; "
        "nvidia-smi -q then shows the fabric as completed",
    ),
    known(
        r"nvidia-container-cli: .*(driver not loaded|load library failed)",
        "The host has no GPU driver that is loaded",
        f"Install the driver, branch {_DRIVER} or later; nvidia-smi has to work outside containers "
        "first",
    ),
    known(
        r"nvidia-container-cli: .*unknown device",
        "There is no GPU of the number or name that was asked for",
        "Look with nvidia-smi -L, and choose with --devices or CUDA_VISIBLE_DEVICES",
    ),
    known(
        r"could not select device driver|unknown flag: --gpus|nvidia-container-cli"
        r"|unknown or invalid runtime name|unresolvable CDI devices",
        "Docker cannot hand the GPU to a container",
        "Install the NVIDIA container toolkit, run nvidia-ctk runtime configure, and restart "
        "Docker",
    ),
    known(
        r"Cannot connect to the Docker daemon|permission denied while trying to connect to the "
        r"[Dd]ocker|dial unix \S*docker\.sock",
        "The Docker daemon cannot be reached",
        "Start it, or add yourself to the docker group; or run inside the container itself",
    ),
    known(
        r"(failed to (register|extract) layer|GetImageBlob|/var/lib/(docker|containerd))"
        r".*no space left|stderr: write \S+: no space left",
        "The disk of Docker's images is full; unpacked, this image takes tens of gigabytes",
        "Free space there (docker system df, docker image prune), or move Docker's data-root to a "
        "larger disk",
    ),
    known(
        r"no matching manifest for |exec format error|does not match the detected host platform",
        "The image is not made for this machine's processor",
        "Use an x86-64 machine, or an image with the same TensorRT that docker manifest inspect "
        f"lists for this processor: {_IMAGE}",
    ),
    known(
        r"unauthorized: |401 Unauthorized|failed to fetch (oauth|anonymous) token"
        r"|pull access denied|requested access to the resource is denied",
        "The registry refuses to hand out the image",
        "A stale login does that: docker logout nvcr.io. Or log in, docker login nvcr.io with the "
        f"user $oauthtoken and an NGC key as password; then docker pull {_IMAGE}",
    ),
    known(
        r"manifest unknown|manifest for \S+ not found|failed to resolve reference"
        r"|lookup \S+: no such host|dial tcp.*(no such host|i/o timeout|unreachable|refused)"
        r"|TLS handshake timeout|Client\.Timeout exceeded|unexpected HTTP status: 5\d\d",
        "Docker cannot fetch the image",
        f"Check its name and the network, and fetch it first: docker pull {_IMAGE}",
    ),
    # PyTorch only warns of what the rows above know, and then there is no GPU.
    known(
        r"max_workers must be greater than 0|No CUDA GPUs are available|no CUDA-capable device"
        r"|Found no NVIDIA driver|libcuda\.so\.1: cannot open",
        "The program sees no GPU, and it needs the very model that serves",
        "Run on a machine with the GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES",
    ),
)

RUNTIME = (
    known(
        r"\bBus error\b|Signal \(7\) received|\bSIGBUS\b",
        "A process was ended by a bus error: nearly always /dev/shm is full, through which ranks, "
        "NCCL and Python models talk",
        "Give the container more shared memory (docker run --shm-size=2g or more) and look for "
        "what others left in /dev/shm",
    ),
    known(
        r"[Ee]rror while creating shared memory segment|failed to extend /dev/shm/nccl|ncclShmOpen",
        "NCCL cannot make its segment in /dev/shm",
        "Give the container more shared memory (docker run --shm-size=2g or more), or export "
        f"NCCL_SHM_DISABLE=1, and {_HANDED_ON}",
    ),
    known(
        r"Call to ibv_\w+ failed|NCCL WARN NET/IB",
        "NCCL cannot use the InfiniBand adapters from inside the container",
        f"Export NCCL_IB_DISABLE=1, and {_HANDED_ON}; the GPUs of one machine do not need them",
    ),
    known(
        r"UCX +ERROR|pml_ucx\.c|PML add procs failed",
        "MPI does not start over this machine's InfiniBand adapters from inside the container",
        f"Export OMPI_MCA_pml=ob1, and {_HANDED_ON}; ranks of one machine then talk through shared "
        "memory",
    ),
    known(
        r"mpiSize == tp ?\* ?pp|MPI worldSize is expected to be equal to tp ?\* ?pp"
        r"|MPI size \d+ != TP size|!= Runtime world size",
        "There are not as many processes as the engine has ranks, which is tensor_parallel x "
        "pipeline_parallel",
        "Start one process per rank under mpirun, as trtllm-pipeline serve does "
        "(--print-command shows the command)",
    ),
    known(
        r"not enough slots available",
        "mpirun sees fewer CPU cores than the engine has ranks",
        "Give the container at least one core per rank, or export "
        f"OMPI_MCA_rmaps_base_oversubscribe=1, and {_HANDED_ON}",
    ),
    known(
        r"ess_singleton|Unable to start a daemon on the local node",
        "MPI cannot start in a process that mpirun did not start",
        "Start it under mpirun, trtllm-pipeline serve --mpirun; or export "
        f"OMPI_MCA_ess_singleton_isolated=1, and {_HANDED_ON}",
    ),
    known(
        r"getting local rank failed|No permission \(-17\)",
        "A Python model, or a program that one started, initialized MPI again inside a rank",
        "Keep tensorrt_llm and mpi4py out of the repository's Python models; those of this "
        "pipeline import neither",
    ),
    known(
        r"(orte|opal|ompi|pmix)_\w*init\w* failed|MPI_INIT\w* failed|error occurred in MPI_Init"
        r"|ORTE was unable to reliably start",
        "MPI does not start: Open MPI's files are not where the program looks for them, or its "
        "folder for sessions cannot be written",
        f"Use the stock image, {_IMAGE}, without another MPI in it (conda and pip bring one), and "
        "keep /tmp writable",
    ),
    known(
        r"Error Code \d+: Out ?Of ?Memory|OutOfMemory|[Oo]ut of memory|CUDA_ERROR_OUT_OF_MEMORY"
        r"|GPU memory \(\d+ bytes\) could not be allocated|cudaErrorMemoryAllocation",
        "The GPU's memory is too small, or another process holds some of it",
        "Stop what else uses the GPU (nvidia-smi lists it). Lower compile.max_batch_size or "
        "compile.max_num_tokens, or raise compile.tensor_parallel",
    ),
    known(
        r"NCCL error|NCCL failure|NCCL WARN Cuda failure|ncclCommInitRank"
        r"|nccl(System|Internal|UnhandledCuda|Remote)Error|ncclInvalidUsage",
        "The GPUs do not reach each other through NCCL",
        "Export NCCL_DEBUG=INFO to see what it says; NCCL_P2P_DISABLE=1 avoids a broken link "
        "between GPUs, NCCL_SHM_DISABLE=1 shared memory, NCCL_CUMEM_ENABLE=0 memory that some "
        "hosts refuse, NCCL_SOCKET_IFNAME names the network. Variables that begin with NCCL_ are "
        "handed on to the container",
    ),
    known(
        r"undefined symbol: ",
        "A library was loaded beside others of another version: something was installed over those "
        "of the image",
        f"Use the stock image, {_IMAGE}; inside it scripts/install replaces nothing",
    ),
    known(
        r"Version tag does not match|expecting library version|[Ff]ailed to deserialize cuda engine"
        r"|Serialization assertion|Expected length \(\d+\) != real length"
        r"|Assertion failed: d == a \+ length|[Cc](annot|ould not) find plugin",
        "The engine was built with another TensorRT or TensorRT-LLM, or for another GPU, than the "
        "one that reads it",
        f"Build and serve in the same image on the same GPU model: {_IMAGE}",
    ),
    # Those of optional keys are in every good log, as [WARNING] or [INFO] lines of their own.
    known(
        r"(modelInstanceState: |what\(\): +|RuntimeError: )(\[TensorRT-LLM\]\[ERROR\] )?"
        r"\[json\.exception\.",
        "The engine's config.json lacks a key that this TensorRT-LLM reads: it is another "
        "version's",
        f"Build and serve with TensorRT-LLM {TENSORRT_LLM}: {_IMAGE}",
    ),
    known(
        r"getpwuid\(\): uid not found",
        "PyTorch asks for the name of a user that the container does not know",
        "Set USER and HOME in the container (docker run --env=USER=trtllm --env=HOME=/tmp), as "
        "trtllm-pipeline does where it starts one",
    ),
    known(
        r"[Pp]ermission denied.*/(models|checkpoint|engine|output|job)\b"
        r"|/(models|checkpoint|engine|output|job)\b.*[Pp]ermission denied"
        r"|failed to (stat file|open directory) /models",
        "The container's user may not use a mounted folder",
        "Let it: chmod -R a+rX for what is read, an own folder for what is written. Where SELinux "
        "enforces (getenforce says), a container needs --security-opt=label=disable as well, which "
        "trtllm-pipeline gives on such a machine",
    ),
)
