"""Starts a program with words on its command line that no other user can read.

``/proc/PID/cmdline`` is readable for everybody, and tritonserver takes the keys of its restricted
APIs from its command line alone. So it is started with placeholders, and stopped by the kernel in
the instant between ``execve`` and its first instruction (``ptrace(2)``, ``PTRACE_TRACEME``). There
its table of arguments is made to point at the words themselves, which stand among its environment:
that part of a process is readable for its own user alone, and for root. Once the program has read
its options, :func:`wipe` takes them out of there, too.

The guardian loads this file by its path, so it imports the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PLACEHOLDER = "hidden"
"""What stands for a word on the command line."""

# <linux/ptrace.h>
_TRACEME, _DETACH = 0, 17
_NAME = "TRTLLM_PIPELINE_VEIL_"
_POINTER = struct.Struct("=Q")
# Fields of proc_pid_stat(5), counted from the one behind the command name.
_START_STACK, _ENV_START, _ENV_END = 25, 47, 48


class VeilError(OSError):
    """The kernel does not let a process look into its own child."""


def start(
    command: Sequence[str],
    words: Mapping[int, str],
    *,
    environment: Mapping[str, str],
    before: Callable[[], None] = lambda: None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Starts a program.

    Args:
        command: With a placeholder for each hidden word.
        words: The hidden words, by their place in ``command``.
        environment: Of the program.
        before: Is called in the child before it becomes the program.
        options: Further ones of :class:`subprocess.Popen`.

    Raises:
        VeilError: Words cannot be hidden on this machine; nothing runs.
        OSError: There is no such program.
    """
    # Loaded before the fork: the child of a fork should not import anything.
    ptrace = _ptrace()

    def prepare() -> None:
        before()
        ptrace(_TRACEME, 0, None, None)

    hidden = {f"{_NAME}{place}": word for place, word in words.items()}
    # Whoever calls this has one thread, as the child of a fork.
    child = subprocess.Popen(
        command,
        env={**environment, **hidden},
        preexec_fn=prepare,  # noqa: PLW1509
        **options,
    )
    try:
        _until_stopped(child.pid)
        _point_at_hidden(child.pid, words, len(command))
        if ptrace(_DETACH, child.pid, None, None):
            raise VeilError("the program does not go on")
    except (OSError, ValueError, struct.error) as error:
        child.kill()
        # Of a traced child the first wait may tell of its stop alone.
        child.wait()
        raise VeilError(str(error)) from error
    return child


def is_possible() -> bool:
    """Tries it on a program that does nothing."""
    # In a process of its own, since whoever asks may have threads, which a fork does not copy.
    return subprocess.run([sys.executable, "-I", "-S", __file__], check=False).returncode == 0


def wipe(pid: int) -> None:
    """Takes the hidden words out of a program's environment, which has read them by now.

    Raises:
        OSError: The program is gone, or may not be looked into.
    """
    begin, end = (_numbers(pid)[field] for field in (_ENV_START, _ENV_END))
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(begin)
        text = memory.read(end - begin)
        place = 0
        for entry in text.split(b"\0"):
            if entry.startswith(_NAME.encode()):
                memory.seek(begin + place)
                memory.write(b"x" * len(entry))
            place += len(entry) + 1


def _ptrace() -> Any:
    function = ctypes.CDLL(None, use_errno=True).ptrace
    function.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_long
    return function


def _until_stopped(pid: int) -> None:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not (os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP):
        raise VeilError("the program was not stopped before its beginning")


def _point_at_hidden(pid: int, words: Mapping[int, str], given: int) -> None:
    """Changes the program's tables of arguments and of its environment."""
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        count = _numbers(pid)[_START_STACK]
        arguments = count + _POINTER.size
        number = _read_pointer(memory, count)
        # Of a script the kernel puts the interpreter in front.
        shift = number - given
        variables = arguments + (number + 1) * _POINTER.size
        first, found, place = _read_pointer(memory, variables), 0, variables
        while pointer := _read_pointer(memory, place):
            name = f"{_NAME}".encode()
            memory.seek(pointer)
            if memory.read(len(name)) == name:
                memory.seek(pointer)
                digits = memory.read(len(name) + 8)[len(name) :].partition(b"=")[0]
                words[int(digits)]
                _write_pointer(
                    memory,
                    arguments + (int(digits) + shift) * _POINTER.size,
                    pointer + len(name) + len(digits) + 1,
                )
                # What the program starts inherits the first variable twice instead.
                _write_pointer(memory, place, first)
                found += 1
            place += _POINTER.size
        if found != len(words):
            raise VeilError("the program's environment is not where it was expected")


def _numbers(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    fields = text.rpartition(")")[2].split()
    return [int(field) if field.lstrip("-").isdecimal() else 0 for field in fields]


def _read_pointer(memory: IO[bytes], place: int) -> int:
    memory.seek(place)
    return int(_POINTER.unpack(memory.read(_POINTER.size))[0])


def _write_pointer(memory: IO[bytes], place: int, value: int) -> None:
    memory.seek(place)
    memory.write(_POINTER.pack(value))


def main() -> int:
    """Returns 0 where words can be hidden on this machine."""
    question = "import sys; sys.exit(sys.argv[1] != 'word')"
    command = [sys.executable, "-I", "-S", "-c", question, PLACEHOLDER]
    try:
        return start(command, {5: "word"}, environment={"LANG": "C"}).wait()
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
