"""A small parent for tritonserver that outlives whoever started it, for as long as it takes.

Run as a script. It stops the server at the end of its standard input or on SIGTERM, so whoever
holds the other end of that pipe may die in any way, even by SIGKILL. The byte ``k`` on standard
input stops the server at once, without waiting for requests; SIGUSR1 does while it waits for them.
Before the guardian exits nothing of the server is left: no process, no shared memory, no runtime
folder. If the guardian itself is killed, the kernel kills the server.

    guardian.py SETTINGS_JSON SERVER_COMMAND...

``SETTINGS_JSON``: {"grace_s": float, "shm_prefix": str, "runtime": str, "owner": str | null,
"hidden_bytes": int, "must_hide": bool}. ``owner`` is the file that says who owns the server
(``owners.py``). Standard input begins with ``hidden_bytes`` bytes: words by their place in
SERVER_COMMAND, as JSON, which other users are not to see (``veil.py``); where the kernel does not
allow that they are shown, unless ``must_hide``. The exit code is the server's, or 128 + the number
of the signal that ended it. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import runpy
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL = b"k"
HURRY = signal.SIGUSR1
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
STUB = "triton_python_backend_stub"

STACK_BYTES = 64 << 20
"""For each thread of the server. Triton's HTTP front takes a request's text onto the stack and
reads nested JSON by recursion: with the usual 8 MiB, 8 MB of text or 300 kB of ``[`` end the
server. What a thread has used stays with it, so much more would be an attacker's to take."""


def remove_regions(prefix: str) -> None:
    """Removes the shared memory regions of one server, by their name's unique prefix."""
    if not prefix or not SHARED_MEMORY.is_dir():
        return
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def end_stubs(prefix: str) -> None:
    """Kills the Python stubs of one server, by the unique prefix in their command lines.

    A stub whose server was killed ends by itself unless it is just waiting for the server.
    """
    if not prefix:
        return
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            program, *words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if program.endswith(STUB) and any(word.startswith(prefix) for word in words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.parent.name), signal.SIGKILL)


def deepen_stack(strict: Path = Path("/proc/sys/vm/overcommit_memory")) -> None:
    """Gives the threads of programs that this process starts deeper stacks, where they are free.

    Args:
        strict: Says ``2`` where the kernel counts what a process could use as if it did.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft >= STACK_BYTES:
        return
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return
    try:
        if strict.read_text(encoding="ascii").strip() == "2":
            return
    except OSError:
        return
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(hard, STACK_BYTES)
    resource.setrlimit(resource.RLIMIT_STACK, (max(soft, wanted), hard))


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _reap() -> dict[int, int]:
    """Exit statuses of the children that ended since the last call, by process id."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def children(parent: int) -> list[int]:
    """Lists the process ids of a process's direct children, zombies among them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(encoding="ascii", errors="replace")
        except OSError:
            # It ended between listing and reading.
            continue
        # State and parent follow the command name, which is in parentheses and may hold anything.
        if int(text.rpartition(")")[2].split()[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def _readable(sources: list[int], timeout: float | None) -> set[int]:
    """Those that can be read without waiting, or are at their end; waits for one at most so long.

    Not ``select``, which refuses a file number above 1023: whoever started this may leave it many.
    """
    waiting = select.poll()
    for source in sources:
        waiting.register(source, select.POLLIN)
    events = waiting.poll(None if timeout is None else timeout * 1000)
    return {source for source, _ in events}


def _wait(server: int, wakeup: int, watch_input: bool, deadline: float | None) -> int | None:
    """The server's exit code once it ended, or None when something else asks for attention."""
    while True:
        ended = _reap()
        if server in ended:
            return ended[server]
        timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
        sources = [wakeup, 0] if watch_input else [wakeup]
        ready = _readable(sources, timeout)
        if wakeup in ready:
            numbers = os.read(wakeup, 64)
            if (signal.SIGTERM if watch_input else HURRY) in numbers:
                return None
        if 0 in ready or not ready:
            return None


def _wants_kill() -> bool:
    return bool(_readable([0], 0)) and os.read(0, 1) == KILL


def _clear_up(group: int) -> None:
    """Ends what the server left behind: its Python stubs become this process's children."""
    deadline = time.monotonic() + 2.0
    while _reap() or children(os.getpid()):
        if time.monotonic() > deadline:
            for pid in children(os.getpid()):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _hidden_words(count: int) -> dict[int, str] | None:
    """The words that standard input begins with; None where whoever started this is gone."""
    text = b""
    while len(text) < count:
        more = os.read(0, count - len(text))
        if not more:
            return None
        text += more
    return {int(place): word for place, word in json.loads(text or b"{}").items()}


def _start(
    command: list[str], words: dict[int, str], must_hide: bool
) -> subprocess.Popen[bytes] | None:
    """Starts the server; None where words that must be hidden cannot be."""
    me = os.getpid()
    if words:
        veil = runpy.run_path(str(Path(__file__).with_name("veil.py")))
        try:
            process: subprocess.Popen[bytes] = veil["start"](
                command,
                words,
                environment=os.environ,
                before=lambda: _die_with_parent(me),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except veil["VeilError"] as error:
            if must_hide:
                print(f"the key cannot be hidden from other users: {error}", flush=True)
                return None
            command = [words.get(place, word) for place, word in enumerate(command)]
        else:
            return process
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: _die_with_parent(me),  # noqa: PLW1509
    )


def main() -> int:
    """Runs the server given on the command line; returns its exit code."""
    settings, command = json.loads(sys.argv[1]), sys.argv[2:]
    deepen_stack()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakeup, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, HURRY):
        signal.signal(number, lambda *_: None)
    words = _hidden_words(settings.get("hidden_bytes", 0))
    if words is None:
        return 1
    server = _start(command, words, settings.get("must_hide", False))
    if server is None:
        return 1
    code = _wait(server.pid, wakeup, watch_input=True, deadline=None)
    if code is None and not _wants_kill():
        os.kill(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + settings["grace_s"]
        code = _wait(server.pid, wakeup, watch_input=False, deadline=deadline)
    if code is None:
        # A client that holds a stream open keeps the server from ending forever.
        os.killpg(server.pid, signal.SIGKILL)
        code = _wait(server.pid, wakeup, watch_input=False, deadline=None)
    _clear_up(server.pid)
    remove_regions(settings["shm_prefix"])
    shutil.rmtree(settings["runtime"], ignore_errors=True)
    if owner := settings.get("owner"):
        Path(owner).unlink(missing_ok=True)
    return 128 - code if code is not None and code < 0 else code or 0


if __name__ == "__main__":
    sys.exit(main())
