"""Finds in Triton's log why it did not start."""

from __future__ import annotations

import re
from typing import NamedTuple

# The start of a log line with --log-format=ISO8601: time, level, process, source.
_LINE = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z ([IWEF]) \d+ \S+\] (.*)$", re.MULTILINE)
_LAST_WORDS = re.compile(r"^error: creating server: ", re.MULTILINE)
_MODEL_IS_LOST = re.compile(
    r"^\d{4}-\d\d-\d\dT[\d:.]+Z E \d+ \S+\] \"?failed to load '[^']+' version \d+: ",
    re.MULTILINE,
)
_FAILED_MODEL = re.compile(
    r"failed to load '(?P<model>[^']+)' version \d+: \w[\w ]*?: (?P<cause>.*?)"
    r"(?=\n\d{4}-\d\d-\d\dT|\Z)",
    re.DOTALL,
)
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*$", re.MULTILINE)
_PLACE = re.compile(r"^\s+(\S+\.py)\((\d+)\): (\S+)", re.MULTILINE)
# How the C++ runtime reports an exception that nobody catches; "terminate called" may come twice.
_UNCAUGHT = re.compile(
    r"terminate called after throwing an instance of '(?P<kind>[^']+)'"
    r"(?:\s+(?:terminate called[^\n]*\s+)?what\(\):\s+(?P<what>[^\n]+))?"
)
# Two that a busy machine provokes: a lock in shared memory that is taken while it is being made.
_LOCKS = re.compile(r"lock_exception|Resource deadlock (?:avoided|would occur)")
# What every server says on a machine without a GPU, whatever it ends from, and what a stub says of
# any server that is gone.
_NOISE = re.compile(
    r"CudaDriverHelper has not been initialized|CUDA driver version is insufficient"
    r"|no CUDA-capable device|Failed to initialize NVML|[Dd]cgm|DCGM"
    r"|Unable to allocate pinned system memory|pinned memory pool disabled"
    r"|Non-graceful termination detected"
)


# Triton's handler of fatal signals says so before it looks for a stack trace, in which it may hang.
# 2 and 15 are those that it is stopped with.
_CRASH = re.compile(r"^Signal \((?!2\)|15\))(?P<number>\d+)\) received", re.MULTILINE)


class Cause(NamedTuple):
    """Why the server did not start and what helps.

    Attributes:
        why: The reason.
        fix: None when it is not known.
        passing: Whether a second start need not meet it.
    """

    why: str
    fix: str | None
    passing: bool = False


_KNOWN = (
    (
        re.compile(r"Unable to initialize shared memory key|Failed to increase the shared memory"),
        "There is not enough room in /dev/shm for the Python models",
        "Give the machine or container more shared memory (docker run --shm-size=1g)",
    ),
    (
        re.compile(r"error while loading shared libraries: ([^\s:]+)"),
        "The shared library {0} is missing",
        "Install it; trtllm-pipeline doctor names what is needed",
    ),
    (
        re.compile(r"triton_python_backend_stub is not found"),
        "The Python backend found no stub for this Python version",
        "Use Python 3.10, 3.11 or 3.12",
    ),
    (
        re.compile(
            r"text-format inference\.ModelConfig: ([^\n]*)\n.*?"
            r"failed to read text proto from ([^\s\"]+)",
            re.DOTALL,
        ),
        "{1} is not a valid model configuration: {0}",
        "Write the repository again with trtllm-pipeline run",
    ),
    (
        re.compile(r"[Ss]ocket '([^']+)' already in use"),
        "The address {0} was taken by another program in the meantime",
        "Start again, or choose another port",
    ),
)


def has_given_up(log: str) -> bool:
    """Checks for the server's last words, those of an end without having started.

    Triton 2.51 sometimes hangs in its own exit after them.
    """
    return _LAST_WORDS.search(log) is not None


def is_doomed(log: str) -> bool:
    """Checks for a model that failed to load, with which the server will end.

    Triton ends only when every other model has loaded or failed too, which may take long.
    """
    return _MODEL_IS_LOST.search(log) is not None


def crash_signal(log: str) -> int | None:
    """Finds the number of the fatal signal that the server said it got; None if there was none.

    Triton 2.51 can hang for good between these words and its end.
    """
    match = _CRASH.search(log)
    return int(match["number"]) if match else None


def find_cause(log: str, seen: str | None = None) -> Cause:
    """Finds the most telling reason in a server's log.

    Args:
        log: What the server wrote, with ``--log-format=ISO8601``.
        seen: What was seen from outside; the reason if the log does not name one for certain.
    """
    log = log.replace("\\n", "\n").replace('\\"', '"')
    for pattern, why, fix in _KNOWN:
        if match := pattern.search(log):
            return Cause(why.format(*match.groups()), fix)
    if match := _UNCAUGHT.search(log):
        return _uncaught(match["kind"], match["what"])
    if match := _FAILED_MODEL.search(log):
        return Cause(f"Model {match['model']} failed to load: {_reason(match['cause'])}", None)
    if seen:
        return Cause(seen, None)
    log = "\n".join(line for line in log.splitlines() if not _NOISE.search(line))
    lines = [text for level, text in _LINE.findall(log) if level in "EF"]
    if lines:
        return Cause(f"Triton's last error was: {lines[-1].strip(chr(34))}", None)
    tail = [line for line in log.splitlines() if line.strip()]
    return Cause(f"The last line of its log is: {tail[-1]}" if tail else "Its log is empty", None)


def _uncaught(kind: str, what: str | None) -> Cause:
    said = kind if what in (None, kind) else f"{kind}: {what}"
    if _LOCKS.search(said):
        return Cause(
            f"A lock between Triton and the processes of its Python models failed ({said})",
            "Start it again; it happens on a busy machine, so start fewer servers at a time",
            passing=True,
        )
    return Cause(f"It ended from a C++ exception that nothing caught ({said})", None)


def _reason(cause: str) -> str:
    """The exception and the deepest place of a Python traceback, or the first line."""
    text = cause.strip().strip('"')
    if "is not healthy" in text:
        return "its Python process ended by itself while it was starting"
    exceptions = _EXCEPTION.findall(text)
    reason = exceptions[-1] if exceptions else text.partition("\n")[0]
    places = _PLACE.findall(text)
    if not places:
        return str(reason).strip()
    # The innermost frame comes first in the list that Python's backend prints.
    file, line, function = places[0]
    return f"{reason.strip()} ({file}:{line}, in {function})"
