"""Causes out of logs that tritonserver 2.51 wrote (shortened)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.triton.failure import crash_signal, find_cause, has_given_up, is_doomed
from pipeline.triton.server import TritonServer


def line(level: str, text: str) -> str:
    """A log line as Triton writes it: messages are quoted and their line ends escaped."""
    escaped = text.replace("\n", "\\n")
    return f'2026-11-23T16:02:06Z {level} 34 some_file.cc:642] "{escaped}"\n'


def failed(model: str, text: str) -> str:
    noise = line("E", "CudaDriverHelper has not been initialized.")
    end = "error: creating server: Internal - failed to load all models\n"
    return noise + line("E", f"failed to load '{model}' version 1: {text}") + end


def thrown(kind: str) -> str:
    """What the C++ runtime says first of an exception that nobody catches."""
    return f"terminate called after throwing an instance of '{kind}'\n"


LOCK = "boost::interprocess::lock_exception"
GONE = line("E", "Non-graceful termination detected. ")
UNFILLED = (
    "[libprotobuf ERROR text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:47: "
    "Expected integer, got: $\n"
) + line("E", "Poll failed for 'pre': failed to read text proto from /repo/pre/config.pbtxt")

CASES = {
    "exception": (
        failed(
            "eng",
            "Internal: ValueError: no such engine\n\nAt:\n  /repo/eng/1/model.py(5): helper\n"
            "  /repo/eng/1/model.py(4): initialize\n",
        ),
        "Model eng failed to load: ValueError: no such engine (/repo/eng/1/model.py:5, in helper)",
    ),
    "missing module": (
        failed(
            "pre",
            "Internal: ModuleNotFoundError: No module named 'numpy'\n\nAt:\n"
            "  /repo/pre/1/model.py(1): <module>\n  <frozen importlib._bootstrap>(241): _call\n",
        ),
        "No module named 'numpy' (/repo/pre/1/model.py:1, in <module>)",
    ),
    "syntax": (
        failed("pre", "Internal: SyntaxError: invalid syntax (model.py, line 6)"),
        "Model pre failed to load: SyntaxError: invalid syntax (model.py, line 6)",
    ),
    "stub died": (
        failed("eng", "Internal: Stub process 'eng_0_0' is not healthy."),
        "Model eng failed to load: its Python process ended by itself while it was starting",
    ),
    "no backend": (
        failed("x", "Invalid argument: unable to find backend library for backend 'tensorrtllm'"),
        "Model x failed to load: unable to find backend library for backend 'tensorrtllm'",
    ),
    "unfilled template": (
        UNFILLED,
        "/repo/pre/config.pbtxt is not a valid model configuration: 1:47: Expected integer, got: $",
    ),
    "port": (
        line(
            "E", "failed to start GRPC service: Unavailable - Socket '127.0.0.1:1' already in use "
        ),
        "The address 127.0.0.1:1 was taken by another program",
    ),
    "shared memory": (
        failed("pre", "Internal: Unable to initialize shared memory key 'x' to requested size"),
        "not enough room in /dev/shm",
    ),
    "library": (
        "tritonserver: error while loading shared libraries: libnuma.so.1: cannot open\n",
        "The shared library libnuma.so.1 is missing",
    ),
    "unknown": (line("I", "fine") + line("E", "on fire"), "Triton's last error was: on fire"),
    "no log line": ("Segmentation fault\n\n", "The last line of its log is: Segmentation fault"),
    "nothing": ("", "Its log is empty"),
    "no GPU": (
        line("I", "loading: preprocessing:1")
        + line("E", "CudaDriverHelper has not been initialized.")
        + line("E", "unable to create stream for ensemble: CUDA driver version is insufficient "),
        "loading: preprocessing:1",
    ),
    "nothing but no GPU": (
        line("W", "Unable to allocate pinned system memory, pinned memory pool will not be there")
        + line("E", "CudaDriverHelper has not been initialized."),
        "Its log is empty",
    ),
    # tensorrtllm_backend issues 521 and 562, and a start under load here.
    "lock": (
        f"{thrown(LOCK)}  what():  {LOCK}\nSignal (6) received.\n{GONE}",
        f"A lock between Triton and the processes of its Python models failed ({LOCK})",
    ),
    "lock, of two threads at once": (
        f"{thrown(LOCK) * 2}[h100-2:00149] *** Process received signal ***\n  what():  {LOCK}\n",
        f"({LOCK})",
    ),
    "deadlock": (
        failed("eng", "Internal: Stub process 'eng_0_0' is not healthy.")
        + thrown("std::system_error")
        + f"  what():  Resource deadlock avoided\n{GONE}",
        "failed (std::system_error: Resource deadlock avoided)",
    ),
    "another exception": (
        thrown("std::bad_alloc") + "  what():  std::bad_alloc\n",
        "It ended from a C++ exception that nothing caught (std::bad_alloc)",
    ),
    "nothing but what a stub says of a server that is gone": (
        line("I", "loading: preprocessing:1") + GONE,
        "loading: preprocessing:1",
    ),
    "a GPU's own error": (line("E", "CUDA error: out of memory"), "CUDA error: out of memory"),
}


@pytest.mark.parametrize("name", CASES)
def test_cause(name: str) -> None:
    log, expected = CASES[name]
    assert expected in find_cause(log).why


def test_only_a_lock_is_a_passing_cause() -> None:
    passing = {name for name, (log, _) in CASES.items() if find_cause(log).passing}
    assert passing == {"lock", "lock, of two threads at once", "deadlock"}


def test_remedy_for_small_shared_memory() -> None:
    assert "--shm-size" in str(find_cause("Failed to increase the shared memory pool size").fix)


def test_what_was_seen_from_outside_is_the_cause_unless_the_log_is_certain() -> None:
    noise = line("E", "something else")
    assert find_cause(noise, "its process died").why == "its process died"
    certain = failed("eng", "Internal: ValueError: no such engine")
    assert "ValueError" in find_cause(certain, "its process died").why


def test_last_words_are_told_from_other_errors() -> None:
    loading = "2026-11-25T22:13:32Z E 1 model_lifecycle.cc:642] \"failed to load 'm' version 1\"\n"
    assert not has_given_up(loading)
    assert not has_given_up(f"{loading}a model prints error: creating server: x\n")
    assert has_given_up(f"{loading}error: creating server: Internal - failed to load all models\n")


def test_a_server_is_doomed_by_a_model_that_failed_and_not_by_what_a_model_prints() -> None:
    assert is_doomed(failed("eng", "Internal: ValueError: no such engine"))
    loading = line("I", "loading: preprocessing:1")
    assert not is_doomed(loading)
    assert not is_doomed(f"{loading}failed to load 'eng' version 1: Internal: printed by a model\n")


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("double free or corruption (out)\nSignal (6) received.\n", 6),
        ("Signal (11) received.\n 0# 0x0000 in tritonserver\n", 11),
        (
            "Signal (15) received.\n" + line("I", "Waiting for in-flight requests to complete."),
            None,
        ),
        ("Signal (2) received.\n", None),
        (line("E", "a model said: Signal (6) received."), None),
    ],
)
def test_a_server_that_says_it_crashed_has_crashed(said: str, number: int | None) -> None:
    assert crash_signal(said) == number


def test_a_crashed_server_that_hangs_in_its_end_is_a_fault_once() -> None:
    server = TritonServer(Path("repository"))
    with tempfile.TemporaryFile() as log:
        server._log, server._process = log, SimpleNamespace(poll=lambda: None)
        log.write(b"Signal (15) received.\nSignal (6)")
        log.flush()
        assert server._fault() is None
        log.write(b" received.\n")
        log.flush()
        assert server._fault() == "tritonserver crashed with signal 6"
        assert server._fault() is None
