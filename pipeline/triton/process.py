"""One tritonserver process under a guardian, from launch to the last trace of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from pipeline.errors import ServerError
from pipeline.triton import guardian, veil
from pipeline.triton.installation import Installation
from pipeline.triton.owners import Owner, places
from pipeline.triton.surroundings import PRIVATE, calling_threads

# After its own exit timeout a server that does not end is hung: a client keeps a stream open.
HANG_S = 1.5
# Room for the guardian to end stray stubs and remove shared memory.
CLEAR_UP_S = 5.0

# Triton starts its Python stubs through a shell and does not quote the paths that it passes on.
BEATS = "TRTLLM_PIPELINE_BEATS"
"""Tells the models' processes where to show that they run (``model_repo/common/orphan.py``)."""

SAFE_PATH = re.compile(r"[A-Za-z0-9_./+-]+")


class ServerProcess:
    """A running tritonserver.

    Args:
        installation: Where the server is.
        repository: The model repository. The server reaches it through a symbolic link, so its own
            path may hold anything.
        flags: Command line flags beyond those that every server here gets.
        exit_timeout_s: How long a stopping server waits for requests in flight.
        log: Open file that receives the server's output.
        backends: Folders of more backends, by name.
        variables: Names of environment variables that it gets beyond those of every server.
        secrets: More flags, ``--NAME=VALUE``, whose values other users of the machine must not see.
        must_hide: Do not start it where the kernel does not let them be hidden.

    Raises:
        ServerError: The processes could not be started.
    """

    def __init__(
        self,
        installation: Installation,
        repository: Path,
        flags: Sequence[str],
        exit_timeout_s: int,
        log: IO[bytes],
        *,
        backends: Mapping[str, Path] | None = None,
        variables: Sequence[str] = (),
        secrets: Sequence[str] = (),
        must_hide: bool = False,
    ) -> None:
        self.shm_prefix = f"trtllm_pipeline_{uuid.uuid4().hex[:12]}_"
        self._grace_s = exit_timeout_s + HANG_S
        self._hurried = False
        self._runtime = _private_folder()
        self.beats = self._runtime / "beats"
        self._repository, self._link = repository.resolve(), self._runtime / "repository"
        owners = places()
        server = [
            str(installation.binary),
            f"--model-repository={self._link}",
            f"--backend-directory={self._runtime / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            f"--backend-config=python,thread-pool-size={calling_threads(repository)}",
            f"--exit-timeout-secs={exit_timeout_s}",
            *flags,
        ]
        hidden = json.dumps(dict(enumerate(secrets, len(server)))).encode()
        server += [f"{word.partition('=')[0]}={veil.PLACEHOLDER}" for word in secrets]
        settings = {
            "grace_s": self._grace_s,
            "shm_prefix": self.shm_prefix,
            "runtime": str(self._runtime),
            "owner": str(owners / f"{self.shm_prefix}.json") if owners else None,
            "hidden_bytes": len(hidden),
            "must_hide": must_hide,
        }
        supervised = [sys.executable, "-I", "-S", guardian.__file__, json.dumps(settings)]
        try:
            self._owner = Owner(self.shm_prefix, self._runtime, owners)
            self.beats.mkdir()
            installation.link(self._runtime, backends)
            self._link.symlink_to(self._repository)
            # A session of its own: Ctrl-C reaches the supervisor only, which stops in order.
            self._guardian = subprocess.Popen(
                [*supervised, *server],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **installation.environment(self._runtime, os.environ, variables),
                    BEATS: str(self.beats),
                },
                umask=PRIVATE,
                pass_fds=self._owner.shared,
                start_new_session=True,
            )
            assert self._guardian.stdin
            # Less than a pipe holds, so nobody waits.
            self._guardian.stdin.write(hidden)
            self._guardian.stdin.flush()
        except OSError as error:
            shutil.rmtree(self._runtime, ignore_errors=True)
            raise ServerError(
                "tritonserver could not be launched", where=str(self._runtime), why=str(error)
            ) from error

    @property
    def pid(self) -> int | None:
        """The server's process id, or None when it is not running."""
        return next(iter(guardian.children(self._guardian.pid)), None)

    def real_paths(self, text: str) -> str:
        """Replaces the path that the server was given by the repository's own in what it wrote."""
        return text.replace(str(self._link), str(self._repository))

    def poll(self) -> int | None:
        """Returns the exit code, or None while it runs."""
        return self._guardian.poll()

    def close_regions(self) -> None:
        """Takes the shared memory of the server from other users; before there are clients.

        Boost gives it mode 0644 whatever the umask says (``fchmod`` after ``shm_open``).
        """
        for path in guardian.SHARED_MEMORY.glob(f"{self.shm_prefix}*"):
            path.chmod(0o600)

    def forget_secrets(self) -> None:
        """Takes the secrets out of the environment of a server that has read its options.

        Processes of the same user could read them there; one that may debug the server still can.
        """
        if (pid := self.pid) is not None:
            with contextlib.suppress(OSError):
                veil.wipe(pid)

    def hurry(self) -> None:
        """Ends a stop that waits for requests in flight, or makes the next one not wait."""
        self._hurried = True
        if self._guardian.stdin and self._guardian.stdin.closed:
            self._guardian.send_signal(guardian.HURRY)

    def stop(self, *, at_once: bool = False) -> None:
        """Ends the server and waits until nothing of it is left.

        Args:
            at_once: Do not wait for requests in flight.
        """
        pipe = self._guardian.stdin
        # Both fail with a broken pipe when the guardian is already gone.
        if pipe and not pipe.closed:
            with contextlib.suppress(BrokenPipeError):
                if at_once or self._hurried:
                    pipe.write(guardian.KILL)
                pipe.close()
        try:
            self._guardian.wait(self._grace_s + CLEAR_UP_S)
        except subprocess.TimeoutExpired:
            # The kernel then kills the server, whose parent this is.
            self._guardian.kill()
            self._guardian.wait()
        guardian.end_stubs(self.shm_prefix)
        guardian.remove_regions(self.shm_prefix)
        shutil.rmtree(self._runtime, ignore_errors=True)
        self._owner.release()


def _private_folder() -> Path:
    """A new folder with a path that a shell takes as it is.

    Raises:
        ServerError: There is no place for one.
    """
    wanted = tempfile.gettempdir()
    parent = wanted if SAFE_PATH.fullmatch(wanted) else "/tmp"  # noqa: S108
    try:
        return Path(tempfile.mkdtemp(prefix="tritonserver-", dir=parent))
    except OSError as error:
        raise ServerError(
            "there is no room for the server's private folder",
            where=parent,
            why=str(error),
            fix="Make it writable, or name another folder in TMPDIR, of letters, digits and ._+-/",
        ) from error
