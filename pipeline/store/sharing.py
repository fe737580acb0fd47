"""What keeps the files of a model from being in the store without taking its disk, and why.

The run finds that out by doing it (:func:`pipeline.store.files.take`). Whoever asks beforehand must
not link a file of the model: that moves its change time, by which stores tell a file that somebody
wrote into, so a plan would have another store read the file or copy the model again. What the
kernel looks at is looked at instead, and what can be tried on files of one's own is tried.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.store import files

PROTECTED = Path("/proc/sys/fs/protected_hardlinks")
_NO_LINKS = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class Obstacle:
    """A reason why a model is copied, in words.

    Attributes:
        why: The reason, as a clause.
        fix: What to do, as an imperative.
    """

    why: str
    fix: str


def obstacle(small: Path, large: Sequence[Path], folder: Path) -> Obstacle | None:
    """Finds out what would keep a model's files from being cloned or linked into a folder.

    Nothing is left in the folder, and nothing about the files is changed.

    Args:
        small: A file of the model that is cloned at once; not empty.
        large: Those that are linked for want of a clone.
        folder: A folder that is there.

    Returns:
        What is in the way; None where the large ones take no disk.

    Raises:
        OSError: Nothing can be written into the folder, or a file cannot be read.
    """
    # Where one can be cloned all can; a large one might wait for bytes that are not written yet.
    with small.open("rb") as reading, tempfile.TemporaryFile(dir=folder) as writing:
        if files.cloned(reading.fileno(), writing.fileno()):
            return None
    if not large:
        return Obstacle(
            "its files are too small to be linked",
            "Write it into larger ones (max_shard_size of save_pretrained)",
        )
    here = _mount(folder)
    for path in large:
        if _mount(path) != here:
            return explained(OSError(errno.EXDEV, ""), path)
        if not _may_link(path):
            return explained(OSError(errno.EPERM, ""), path)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".links-") as own:
        file = Path(own) / "file"
        file.touch()
        try:
            os.link(file, file.with_name("link"))
        except OSError as error:
            return explained(error, file)
    return None


def explained(error: OSError, path: Path) -> Obstacle:
    """Says why a link to a file was refused.

    Args:
        error: What :func:`os.link` raised.
        path: The file.
    """
    if error.errno == errno.EXDEV:
        return Obstacle(
            "the model's folder and the build directory are not in one mount, and no link leads "
            "from one to another, not even on one disk",
            "Have both in one, such as one volume of a container that holds both, and name the "
            "place with --build-dir",
        )
    if error.errno == errno.EPERM and not _may_link(path):
        return Obstacle(
            "the model's files belong to another user, and the kernel does not allow links to them "
            f"({PROTECTED.name})",
            "Run as the user that they belong to, or make the files your own with chown",
        )
    if error.errno == errno.EPERM:
        return Obstacle(
            "links to the model's files are not permitted, as on a file system without links, or "
            "where files are immutable",
            "Have both on a file system with links, such as ext4 or XFS, and see lsattr",
        )
    if error.errno in _NO_LINKS:
        return Obstacle(
            "the file system of the model and of the build directory has no links",
            "Have both on one that has, such as ext4 or XFS",
        )
    if error.errno == errno.EMLINK:
        return Obstacle(
            "the model's files have as many links as the file system allows",
            "Remove artifacts that nobody needs, of each build directory: trtllm-pipeline store "
            "prune",
        )
    return Obstacle(
        f"a link to {path.name} was refused: {error.strerror or error}",
        "See what ln says of a link from there into the build directory",
    )


def _may_link(path: Path) -> bool:
    """Whether the kernel lets this process link a file, by its owner (may_linkat in fs/namei.c)."""
    try:
        protected = PROTECTED.read_text(encoding="utf-8").strip() != "0"
    except OSError:
        return True
    effective = os.access in os.supports_effective_ids
    return (
        not protected
        or path.stat().st_uid == os.geteuid()
        or os.access(path, os.R_OK | os.W_OK, effective_ids=effective)
    )


def _mount(path: Path) -> tuple[int, int]:
    """The device of a file, and the mount that it is reached through where the system says it."""
    descriptor = os.open(path, getattr(os, "O_PATH", os.O_RDONLY))
    try:
        device = os.fstat(descriptor).st_dev
        try:
            said = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="utf-8")
        except OSError:
            return device, 0
    finally:
        os.close(descriptor)
    found = re.search(r"^mnt_id:\s*(\d+)$", said, re.MULTILINE)
    return device, int(found[1]) if found else 0
