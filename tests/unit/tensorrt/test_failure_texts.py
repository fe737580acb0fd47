"""What users of the stack were shown, and whether cause and remedy are the ones that helped them.

Each text is from the thread it names, shortened; the cause is the one found there. ``repo#n`` is
short for NVIDIA/TensorRT-LLM (llm), triton-inference-server/tensorrtllm_backend (backend) and
triton-inference-server/server (server). "With" puts two texts into one log, "worded as" gives a
text another name or version of ours. Several would be taken for something else by the first word
that looks like a cause.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from pipeline.targets.tensorrt.build.failures import explain_failure
from pipeline.targets.tensorrt.serve.failures import launch_cause

OCI = (
    "docker: Error response from daemon: failed to create task for container: failed to create "
    "shim task: OCI runtime create failed: runc create failed: unable to start container process: "
    "error during container init: error running prestart hook #0: exit status 1, stdout: , stderr: "
    "Auto-detected mode as 'legacy'\n"
)
LLM = "[TensorRT-LLM][ERROR] "
ORTE = (
    "It looks like orte_init failed for some reason; your parallel process is\nlikely to abort.  "
    "There are many reasons that a parallel process can\nfail during orte_init;\n"
)
MPI_INIT = (
    "It looks like MPI_INIT failed for some reason; your parallel process is\nlikely to abort.\n"
)
BACKEND = "/opt/tritonserver/backends/tensorrtllm/"


class Shown(NamedTuple):
    """A text and its judgement; ``wrong`` must not be in the remedy."""

    where: str
    text: str
    why: str
    fix: str
    wrong: str = "no such words"


# In either log: of the container that builds or tries an engine, and of the one that serves.
ANYWHERE = (
    Shown(
        "MauriceNino/dashdot#1226, worded as for CUDA 13.1",
        OCI + "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.1, please "
        "update your driver to a newer version, or use an earlier cuda container: unknown",
        "driver is older than CUDA 13",
        "branch 580",
        "toolkit",
    ),
    Shown(
        "NVIDIA/nvidia-docker#543: with spaces",
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda >= 9.0",
        "driver is older",
        "branch 580",
        "toolkit",
    ),
    Shown(
        "NVIDIA/nvidia-container-toolkit#394",
        OCI + "nvidia-container-cli: initialization error: nvml error: driver/library version "
        "mismatch: unknown.",
        "of different versions",
        "Restart the machine",
        "toolkit",
    ),
    Shown(
        "CompVis/stable-diffusion#439",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions "
        "before calling NumCudaDevices() that might have already set an error? Error 803: system "
        "has unsupported display driver / cuda driver combination",
        "of different versions",
        "branch 580",
    ),
    Shown(
        "gpustack/gpustack#1254",
        "Error 804: forward compatibility was attempted on non supported HW",
        "driver is older",
        "branch 580",
    ),
    Shown(
        "server#2784",
        "CUDA driver version is insufficient for CUDA runtime version",
        "driver is older",
        "branch 580",
    ),
    Shown(
        "microsoft/lisa#2823 with llm#1164: PyTorch warns, and then there is no GPU",
        "UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). Did you run "
        "some cuda functions before calling NumCudaDevices() that might have already set an error? "
        "Error 802: system not yet initialized (Triggered internally at CUDAFunctions.cpp:112.)\n"
        "ValueError: max_workers must be greater than 0",
        "fabric manager",
        "nvidia-fabricmanager",
        "CUDA_VISIBLE_DEVICES",
    ),
    Shown(
        "pytorch/pytorch#35710",
        "RuntimeError: cuda runtime error (802) : system not yet initialized at /opt/conda/"
        "conda-bld/pytorch_1579022034529/work/aten/src/THC/THCGeneral.cpp:50",
        "fabric manager",
        "nvidia-fabricmanager",
    ),
    Shown(
        "NVIDIA/nvidia-docker#1352, OpenBMB/XAgent#273",
        'docker: Error response from daemon: could not select device driver "" with capabilities: '
        "[[gpu]].",
        "cannot hand the GPU",
        "container toolkit",
    ),
    Shown(
        "NVIDIA/TensorRT#82",
        "Get https://nvcr.io/v2/nvidia/tensorrt/manifests/19.05-py3: unauthorized: authentication "
        "required",
        "refuses to hand out the image",
        "docker login nvcr.io",
    ),
    Shown(
        "server#3805",
        "failed to authorize: rpc error: code = Unknown desc = failed to fetch anonymous token: "
        "unexpected status: 401 Unauthorized",
        "refuses to hand out the image",
        "docker logout nvcr.io",
    ),
    Shown(
        "server#7356",
        "ERROR: failed to solve: nvcr.io/nvidia/tritonserver:22.12-py3: failed to resolve source "
        "metadata for nvcr.io/nvidia/tritonserver:22.12-py3: failed to do request: Head "
        '"https://nvcr.io/v2/nvidia/tritonserver/manifests/22.12-py3": dial tcp: lookup nvcr.io: '
        "i/o timeout",
        "cannot fetch the image",
        "the network",
    ),
    Shown(
        "server#5747",
        "Error response from daemon: manifest for nvcr.io/nvidia/tritonserver:23.04-py not found: "
        "manifest unknown: manifest unknown",
        "cannot fetch the image",
        "docker pull",
    ),
    Shown(
        "NVIDIA/TensorRT#1479",
        "10.2-cudnn8-devel-ubuntu18.04: Pulling from nvidia/cuda\n"
        "no matching manifest for linux/arm64/v8 in the manifest list entries",
        "not made for this machine's processor",
        "docker manifest inspect",
    ),
    Shown(
        "server#5717",
        "exec /opt/nvidia/nvidia_entrypoint.sh: exec format error",
        "not made for this machine's processor",
        "x86-64",
    ),
    Shown(
        "dusty-nv/jetson-inference#1569: the disk of the images, not the one of the engine",
        "docker: failed to register layer: Error processing tar file(exit status 1): write "
        "/usr/local/cuda-11.4/bin/nvdisasm: no space left on device.\nSee 'docker run --help'.",
        "disk of Docker's images",
        "data-root",
        "--build-dir",
    ),
    Shown(
        "tlc-pack/tlcpack#186: in two lines",
        "docker: failed to register layer: ApplyLayer exit status 1 stdout:  \n"
        "stderr: write /usr/local/cuda-11.6/targets/x86_64-linux/lib/libnppif.so: no space left on "
        "device.",
        "disk of Docker's images",
        "data-root",
        "--build-dir",
    ),
    Shown(
        "tech-shrimp/docker_image_pusher#39",
        "/var/lib/docker/tmp/GetImageBlob3110843648: no space left on device",
        "disk of Docker's images",
        "data-root",
        "--build-dir",
    ),
    Shown(
        "backend#33, #54, llm#1796",
        "Internal: unexpected error when creating modelInstanceState: " + LLM + "Assertion failed: "
        "mpiSize == tp * pp (/app/tensorrt_llm/cpp/tensorrt_llm/runtime/worldConfig.cpp:80)",
        "as many processes as the engine has ranks",
        "under mpirun",
    ),
    Shown(
        "llm#2021, #2058",
        LLM + "Assertion failed: With communicationMode kLEADER, MPI worldSize is expected to be "
        "equal to tp*pp when participantIds are not specified",
        "as many processes as the engine has ranks",
        "under mpirun",
    ),
    Shown(
        "llm#1992",
        "RuntimeError: " + LLM + "Assertion failed: MPI size 1 != TP size 2 * PP size 1",
        "as many processes as the engine has ranks",
        "under mpirun",
    ),
    Shown(
        "llm#1826",
        "dc69d25252pa:21856:21856 [0] misc/shmutils.cc:72 NCCL WARN Error: failed to extend "
        "/dev/shm/nccl-YNr3AB to 9637892 bytes\n"
        "dc69d25252pa:21856:21856 [0] misc/shmutils.cc:113 NCCL WARN Error while creating shared "
        "memory segment /dev/shm/nccl-YNr3AB (size 9637888)",
        "segment in /dev/shm",
        "NCCL_SHM_DISABLE=1",
    ),
    Shown(
        "llm#1826 with the kernel's ENOSPC: /dev/shm is what is full",
        "NCCL WARN Error: failed to extend /dev/shm/nccl-YNr3AB to 9637892 bytes\n"
        "No space left on device",
        "segment in /dev/shm",
        "NCCL_SHM_DISABLE=1",
        "--build-dir",
    ),
    Shown(
        "vllm-project/vllm#14537: the newer wording",
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or "
        "device error.\nLast error:\nError while creating shared memory segment /dev/shm/nccl-Eo "
        "(size 7340384)",
        "segment in /dev/shm",
        "--shm-size",
    ),
    Shown(
        "NVIDIA/nccl#799, #925",
        "72bf7b08-26f3-4ebc:76786:77145 [3] misc/ibvwrap.cc:284 NCCL WARN Call to ibv_modify_qp "
        "failed with error No such device",
        "InfiniBand",
        "NCCL_IB_DISABLE=1",
        "NCCL_P2P_DISABLE",
    ),
    Shown(
        "backend#170",
        LLM + "Failed, NCCL error /app/tensorrt_llm/cpp/tensorrt_llm/plugins/ncclPlugin/"
        "sendPlugin.cpp:129 'invalid usage (run with NCCL_DEBUG=WARN for details)'",
        "through NCCL",
        "NCCL_DEBUG=INFO",
    ),
    Shown(
        "llm#213, #504, backend#103",
        "Failed, NCCL error /src/tensorrt_llm/cpp/tensorrt_llm/plugins/ncclPlugin/"
        "allreducePlugin.cpp:295 'internal error - please report this issue to the NCCL "
        "developers'",
        "through NCCL",
        "NCCL_P2P_DISABLE=1",
    ),
    Shown(
        "llm#4238",
        "[1] enqueue.cc:1500 NCCL WARN Cuda failure 1 'invalid argument'\n"
        "Failed, NCCL error /home/jenkins/agent/workspace/LLM/main/L0_Test-x86_64/tensorrt_llm/cpp/"
        "tensorrt_llm/thop/allreduceOp.cpp:308 'unhandled cuda error (run with NCCL_DEBUG=INFO for "
        "details)'",
        "through NCCL",
        "NCCL_DEBUG=INFO",
    ),
    Shown(
        "llm#1670: it is the memory that is missing, NCCL only met it first",
        "VM-0-16-ubuntu:392:494 [2] enqueue.cc:43 NCCL WARN Cuda failure 'out of memory'\n"
        "VM-0-16-ubuntu:392:494 [2] enqueue.cc:54 NCCL WARN Cuda failure 'invalid resource handle'",
        "memory is too small",
        "nvidia-smi",
        "NCCL_P2P_DISABLE",
    ),
    Shown(
        "llm#99: in NCCL's own frames",
        "[ubuntu-NF5468M6:18080:0:18080] Caught signal 7 (Bus error: nonexistent physical address)"
        "\n==== backtrace (tid:  18080) ====\n 2 0x000000000008e445 ncclGroupEnd()  ???:0\n"
        " 9 0x00000000000584b5 pncclCommInitRank()  ???:0",
        "bus error",
        "--shm-size",
        "NCCL_P2P_DISABLE",
    ),
    Shown(
        "server#7293: in UCX's",
        "[triton-7cd84c8f4b-wzsk9:30 :0:30] Caught signal 7 (Bus error: nonexistent physical "
        "address)\nbacktrace (tid: 30)\n1 0x000000000001678b uct_iface_mp_chunk_alloc_inner()",
        "bus error",
        "--shm-size",
    ),
    Shown(
        "llm#3112: UCX under MPI_Init; OMPI_MCA_pml=ob1 helped there",
        "[1743007144.736077] [1075b74dbf6d:42   :0]       ib_device.c:1332 UCX  ERROR   "
        "ibv_create_ah(dlid=49152 sl=0 port=1) for UD mlx5 connect on mlx5_1 failed: No such "
        "device\n[1075b74dbf6d:00042] pml_ucx.c:424  Error: ucp_ep_create(proc=0) failed: Address "
        "not valid\n" + MPI_INIT + "  PML add procs failed\n"
        '  --> Returned "Error" (-1) instead of "Success" (0)',
        "InfiniBand",
        "OMPI_MCA_pml=ob1",
        "NCCL_IB_DISABLE",
    ),
    Shown(
        "backend#553, #712, llm#3654",
        ORTE + "  getting local rank failed\n  --> Returned value No permission (-17) instead of "
        "ORTE_SUCCESS",
        "initialized MPI again",
        "mpi4py",
        "stock image",
    ),
    Shown(
        "xbpeng/DeepMimic#85, JohannesBuchner/PyMultiNest#158",
        "[zcluster4:22139] [[INVALID],INVALID] ORTE_ERROR_LOG: Unable to start a daemon on the "
        "local node in file ess_singleton_module.c at line 582\n" + ORTE,
        "a process that mpirun did not start",
        "serve --mpirun",
        "stock image",
    ),
    Shown(
        "llm#2801, #1294",
        "It looks like opal_init failed for some reason; your parallel process is\nlikely to "
        "abort.",
        "MPI does not start",
        "stock image",
    ),
    Shown(
        "backend#698",
        "ORTE was unable to reliably start one or more daemons.\nThis usually is caused by:",
        "MPI does not start",
        "stock image",
    ),
    Shown(
        "llm#5854, mit-han-lab/spvnas#10",
        "There are not enough slots available in the system to satisfy the 8 slots \nthat were "
        "requested by the application:\n  python",
        "fewer CPU cores",
        "core per rank",
    ),
    Shown(
        "backend#375, worded as in TensorRT-LLM's plugins of today",
        LLM + "Assertion failed: Expected length (168) != real length (152). This is often caused "
        "by using different TensorRT LLM version to build engine and run engine.",
        "built with another TensorRT or TensorRT-LLM",
        "same image",
    ),
    Shown(
        "backend#213, server#7118: the older wording",
        "tensorrt_llm::common::TllmException: " + LLM + "Assertion failed: d == a + length "
        "(gptAttentionCommon.cpp:418)",
        "built with another TensorRT or TensorRT-LLM",
        "same image",
    ),
    Shown(
        "backend#190, llm#660",
        "[TensorRT-LLM][ERROR] 1: [stdArchiveReader.cpp::stdArchiveReaderInitCommon::47] Error "
        "Code 1: Serialization (Serialization assertion stdVersionRead == kSERIALIZATION_VERSION "
        "failed.Version tag does not match. Note: Current Version: 226, Serialized Engine Version: "
        "228)",
        "built with another TensorRT or TensorRT-LLM",
        "same image",
    ),
    Shown(
        "guidance-ai/llgtrt#7: the engine is right, the memory is short",
        "[TensorRT-LLM][ERROR] [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime "
        "(out of memory)\n[TensorRT-LLM][ERROR] [deserialize.cpp::load::572] Error Code 2: "
        "OutOfMemory (Requested size was 69568823808 bytes.)\nError: tlc_init: "
        + LLM
        + "Assertion failed: Failed to deserialize cuda engine.",
        "memory is too small",
        "nvidia-smi",
        "same image",
    ),
    Shown(
        "llm#808, whose symbol is another: PyTorch was replaced under TensorRT-LLM",
        "ImportError: /usr/local/lib/python3.10/dist-packages/tensorrt_llm/libs/libth_common.so: "
        "undefined symbol: _ZN2at4_ops5zeros4callEN3c108ArrayRefINS2_6SymIntEEE",
        "of another version",
        "stock image",
    ),
    Shown(
        "backend#337, server#6878",
        "Internal: unexpected error when creating modelInstanceState: "
        "[json.exception.out_of_range.403] key 'builder_config' not found",
        "lacks a key",
        "TensorRT-LLM 1.2.1",
    ),
    Shown(
        "vectorize-io/hindsight#3934",
        'File "torch/_inductor/runtime/cache_dir_utils.py", line 23, in default_cache_dir\n'
        "KeyError: 'getpwuid(): uid not found: 1042'",
        "name of a user",
        "USER",
    ),
    Shown(
        "NVIDIA/nvidia-docker#1138",
        "docker: Got permission denied while trying to connect to the Docker daemon socket at "
        "unix:///var/run/docker.sock: Post http://%2Fvar%2Frun%2Fdocker.sock/v1.40/containers/create"
        ": dial unix /var/run/docker.sock: connect: permission denied.",
        "daemon cannot be reached",
        "docker group",
        "SELinux",
    ),
)
SERVING = (
    Shown(
        "backend#618, #662: not a backend that is missing, but libraries that do not fit",
        "Not found: unable to load shared library: " + BACKEND + "libtriton_tensorrtllm_common.so: "
        "undefined symbol: _ZNK12tensorrt_llm8executor8Response11getErrorMsgB5cxx11Ev;",
        "of another version",
        "stock image",
    ),
    Shown(
        "server#7950",
        "failed to load 'tensorrt_llm' version 1: Invalid argument: unable to find backend library "
        "for backend 'tensorrtllm', try specifying runtime on the model configuration.",
        "no tensorrtllm backend",
        "trtllm-python-py3",
    ),
    Shown(
        "backend#66: the plain image",
        "failed to load 'tensorrt_llm' version 2: Invalid argument: unable to find "
        "'tensorrtllm/model.py' for model 'tensorrt_llm', in " + BACKEND,
        "no tensorrtllm backend",
        "trtllm-python-py3",
    ),
    Shown(
        "server#5206, worded as for this backend",
        "Invalid argument: unable to find 'libtriton_tensorrtllm.so' for model 'tensorrt_llm', "
        "searched: /models/tensorrt_llm/1, /models/tensorrt_llm, " + BACKEND,
        "no tensorrtllm backend",
        "trtllm-python-py3",
    ),
    Shown(
        "backend#545, #184",
        "UNAVAILABLE: Not found: unable to load shared library: "
        "libnvinfer_plugin_tensorrt_llm.so.9: cannot open shared object file: No such file or "
        "directory",
        "not its libraries",
        "trtllm-python-py3",
    ),
    Shown(
        "maris-development/beacon#514, worded as by Triton: SELinux on a mount",
        "failed to open text file for read /models/ensemble/config.pbtxt: Permission denied",
        "mounted folder",
        "label=disable",
    ),
    Shown(
        "server#1931, worded as for our mount: it has no errno",
        "error: creating server: Internal - failed to stat file /models",
        "mounted folder",
        "getenforce",
    ),
    Shown(
        "llm#1063 with llm#494: every good log has such lines; the memory is the cause",
        "[TensorRT-LLM][INFO] Parameter layer_types cannot be read from json:\n[TensorRT-LLM]"
        "[WARNING] [json.exception.out_of_range.403] key 'layer_types' not found\n"
        "maxTokensInPagedKvCache must be large enough to process at least 1 sequence to completion "
        "(i.e. must be larger than beam_width * tokensPerBlock * maxBlocksPerSeq)",
        "KV cache is too small",
        "max_seq_len",
    ),
    Shown(
        "server#1931 with a port in use: the entry point says this of every start as a user",
        "find: '/usr/lib/ssl/private': Permission denied\nBind for 127.0.0.1:8001 failed: port is "
        "already allocated",
        "port is in use",
        "other ports",
    ),
)
BUILDING = (
    Shown(
        "llm#1496, #1843",
        "RuntimeError: " + LLM + "W4A(fp)8 kernel is unsupported on pre-Ada (sm<89) architectures!",
        "no kernel for the format",
        "SM 89",
    ),
    Shown(
        "llm#9688, #1792, #1416",
        "[TensorRT-LLM][WARNING] Have not found any valid GEMM config for shape (m=1, n=1536, "
        "k=4096). Will try to use default or fail at runtime\n"
        "AssertionError: Engine building failed, please check the error log.",
        "No GEMM kernel fits",
        "compile.tensor_parallel",
    ),
    Shown(
        "Python's own, of the folder that docker mounted",
        "PermissionError: [Errno 13] Permission denied: '/engine/model.cache'",
        "mounted folder",
        "label=disable",
    ),
    Shown(
        "the same of upstream's /output",
        "PermissionError: [Errno 13] Permission denied: '/output/rank0.engine'",
        "mounted folder",
        "own folder for what is written",
    ),
    Shown(
        "in place, anywhere",
        "PermissionError: [Errno 13] Permission denied: '/srv/cache/model.cache'",
        "may not be used",
        "owner and mode",
    ),
    Shown(
        "the disk of the engine, where nothing speaks of images",
        "OSError: [Errno 28] No space left on device: '/engine/rank0.engine'",
        "disk is full",
        "--build-dir",
    ),
)


def _id(shown: Shown) -> str:
    return shown.where.partition(":")[0].partition(",")[0]


@pytest.mark.parametrize("shown", [*ANYWHERE, *SERVING], ids=_id)
def test_serving_names_cause_and_remedy(shown: Shown) -> None:
    cause = launch_cause(f"=== Triton Inference Server ===\n{shown.text}\n")
    assert shown.why in cause.why
    assert cause.fix is not None
    assert shown.fix in cause.fix
    assert shown.wrong.lower() not in cause.fix.lower()


@pytest.mark.parametrize("shown", [*ANYWHERE, *BUILDING], ids=_id)
def test_building_names_cause_and_remedy(shown: Shown) -> None:
    failure = explain_failure(f"[TensorRT-LLM] version: 1.2.1\n{shown.text}".splitlines(), 1)
    assert shown.why in failure.why
    assert shown.fix in failure.fix
    assert shown.wrong.lower() not in failure.fix.lower()


def test_a_good_log_gives_nothing_away() -> None:
    """llm#1063 and backend#54: notes of servers that work."""
    notes = (
        "[TensorRT-LLM][WARNING] Parameter max_draft_len cannot be read from json:\n"
        "[TensorRT-LLM][WARNING] [json.exception.out_of_range.403] key 'max_draft_len' not found\n"
        "ga:617:639 [0] NCCL INFO NET/IB : No device found.\n"
        "ga:617:639 [0] NCCL INFO P2P plugin IBext\n"
        "pa:21856:21856 [0] NCCL INFO NET/Plugin : dlerror=libnccl-net.so: cannot open shared "
        "object file: No such file or directory No plugin found (libnccl-net.so)\n"
        "[TensorRT-LLM][INFO] MPI size: 2, MPI local size: 2, rank: 0\n"
        "the very last line"
    )
    assert launch_cause(notes).why == "The last line of its log is: the very last line"
    assert "known ones" in explain_failure(notes.splitlines(), 1).fix
