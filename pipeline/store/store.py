"""The content-addressed store of artifacts.

An artifact is a directory ``<store>/<stage>/<key>`` whose ``artifact.json`` lists every file with
its SHA-256. It appears by rename, complete, or not at all; it is never changed afterwards. A
damaged one counts as missing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import StoreError
from pipeline.store.artifact import (
    BORROWED,
    MANIFEST,
    SCHEMA,
    Artifact,
    Damage,
    borrowed_files,
    changed_meanwhile,
    check_files,
    read_manifest,
)
from pipeline.store.digests import (
    DigestMemo,
    digest_of,
    files_below,
    oddities_below,
)
from pipeline.store.files import fsync
from pipeline.store.holder import lock_path, noted, waiting_for
from pipeline.store.unfinished import Unfinished, link_mark_of

_NO_ARTIFACTS = ("tmp", "locks", "unfinished")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK_ERRORS = (*_FULL, errno.EROFS)
# Whoever lists what is unfinished holds a lock for less, which is nothing to tell of.
_MOMENT_S = 0.2


class Store:
    """Artifacts below one directory.

    Args:
        root: The directory; it is created when something is written.

    Attributes:
        root: The same.
        memo: Digests of files that were read.
        unfinished: What stages left of work that did not end.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.memo = DigestMemo(root / "digests.json")
        self.unfinished = Unfinished(root)

    def path(self, stage: str, key: str) -> Path:
        """Returns where the artifact of that key is or would be."""
        return self.root / stage / key

    def get(self, stage: str, key: str) -> tuple[Artifact | None, Damage | None]:
        """Returns the artifact of that key, if it is there and whole.

        Returns:
            The artifact or None, and what is wrong with the directory when it is damaged.
        """
        path = self.path(stage, key)
        if not path.is_dir():
            return None, None
        try:
            manifest = read_manifest(path)
            problems = check_files(path, manifest, self.memo)
        except StoreError as error:
            return None, Damage(path, (str(error),))
        if problems:
            return None, Damage(path, tuple(problems))
        return Artifact(stage, key, manifest["digest"], path, manifest["facts"]), None

    @contextmanager
    def lock(
        self,
        stage: str,
        key: str,
        *,
        doing: str = "",
        on_wait: Callable[[str], None] = lambda _whom: None,
    ) -> Iterator[None]:
        """Holds the key against other processes; waits while another one builds it.

        Args:
            stage: The stage, or what else is locked.
            key: The key.
            doing: What is done meanwhile, for those who wait; empty is the stage.
            on_wait: Is told whom this process waits for, before it does.
        """
        path = self._lock_path(f"{stage}-{key}")
        doing = doing or stage
        with self.writing():
            lock = FileLock(path)
            try:
                lock.acquire(timeout=_MOMENT_S)
            except Timeout:
                on_wait(waiting_for(path, doing))
                lock.acquire()
        try:
            with noted(path, doing):
                yield
        finally:
            lock.release()

    @contextmanager
    def workspace(self, stage: str, key: str) -> Iterator[Path]:
        """Makes an empty directory to build in, on the store's file system; removed afterwards."""
        name = f"{stage}-{key}-{uuid.uuid4().hex[:8]}"
        path = self.root / "tmp" / name
        with self.writing():
            path.mkdir(parents=True)
        try:
            yield path
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise self._unwritable(error) from error
            raise
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def begun(
        self,
        stage: str,
        key: str,
        inputs: Mapping[str, Artifact],
        *,
        anew: bool = False,
        note: Callable[[str], None] = lambda _message: None,
    ) -> Iterator[Path]:
        """Gives the directory that outlives a failure and a kill; the key's lock has to be held.

        Args:
            stage: The stage.
            key: The key.
            inputs: What the stage reads, as :meth:`changed` has found it. What was made before
                somebody wrote into one of them is not gone on with.
            anew: Begins with nothing.
            note: Is told why something is not gone on with, and that something is kept.

        Raises:
            StoreError: The store cannot be written.
        """
        with ExitStack() as stack:
            with self.writing():
                # A killed run of this key may have linked from there to here.
                for left in self.root.glob(f"tmp/{stage}-{key}-*"):
                    shutil.rmtree(left, ignore_errors=True)
                marks = self._marks(inputs)
                begun = self.unfinished.begun(stage, key, marks, anew=anew, note=note)
                path = stack.enter_context(begun)
            yield path

    def publish(
        self,
        directory: Path,
        *,
        stage: str,
        key: str,
        material: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        facts: Mapping[str, Any],
        seconds: float,
        borrowed: Collection[str] = (),
    ) -> Artifact:
        """Makes a filled workspace the artifact of a key, by rename.

        Args:
            directory: From :meth:`workspace`.
            stage: The stage that filled it.
            key: Digest of ``material``.
            material: Everything that decides the bytes.
            inputs: The artifacts it was made from.
            facts: What the stage returned.
            seconds: How long it took; not part of the digest.
            borrowed: Files that are hard links of files that somebody else may write into. Their
                modes are left alone, and every write into them is found; see :class:`DigestMemo`.

        Raises:
            StoreError: The disk is full or the store cannot be written, or there is something in
                the directory that is no file.
        """
        with self.writing():
            _tidy(directory)
            names = files_below(directory)
            paths = [directory / name for name in names]
            for path in paths:
                if path.stat().st_nlink == 1:  # a linked file belongs to somebody else, too
                    path.chmod(0o444)
                fsync(path)
            read = self.memo.digests(paths, {directory / name for name in borrowed})
            files = {}
            for name, path, value in zip(names, paths, read, strict=True):
                if isinstance(value, OSError):
                    raise value
                files[name] = {"sha256": value, "bytes": path.stat().st_size}
            digest = digest_of({"files": files, "facts": facts})
            manifest = {
                "schema": SCHEMA,
                "stage": stage,
                "key": key,
                "digest": digest,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(seconds, 3),
                "inputs": {name: _reference(artifact) for name, artifact in inputs.items()},
                "chain": _chain(inputs),
                "material": material,
                "facts": facts,
                "files": files,
                **({BORROWED: sorted(borrowed)} if borrowed else {}),
            }
            text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
            (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
            fsync(directory / MANIFEST)
            fsync(directory)
            final = self.path(stage, key)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                # Only a damaged entry gets here: a whole one would have been a hit.
                final.rename(self.root / "tmp" / f"damaged-{uuid.uuid4().hex[:8]}")
            directory.rename(final)
            fsync(final.parent)
            for name in files:
                self.memo.moved(directory / name, final / name)
        return Artifact(stage, key, digest, final, facts)

    def changed(self, inputs: Mapping[str, Artifact]) -> dict[str, list[str]]:
        """Looks again at inputs that somebody else may have written into, while they were read.

        Returns:
            One sentence for each file that is not what it was, by the input's name.
        """
        found = {name: changed_meanwhile(one, self.memo) for name, one in inputs.items()}
        return {name: problems for name, problems in found.items() if problems}

    def ancestors(self, inputs: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
        """Reads the manifests of artifacts and of all that they descend from, by stage.

        One that was pruned is left out.
        """
        found = {}
        for stage, its in _chain(inputs).items():
            path = self.path(stage, its["key"])
            if (path / MANIFEST).is_file():
                found[stage] = read_manifest(path)
        return found

    def artifacts(self) -> list[Path]:
        """Lists the directories of all artifacts, whole or damaged."""
        found = []
        for stage in sorted(self.root.glob("*")):
            if stage.is_dir() and stage.name not in _NO_ARTIFACTS:
                found += sorted(path for path in stage.iterdir() if path.is_dir())
        return found

    def verify(self) -> list[Damage]:
        """Reads every byte of every artifact; returns the damaged ones."""
        damaged = []
        for path in self.artifacts():
            try:
                problems = check_files(path, read_manifest(path), memo=None)
            except StoreError as error:
                problems = [str(error)]
            if problems:
                damaged.append(Damage(path, tuple(problems)))
        return damaged

    def sweep(self) -> int:
        """Removes what killed runs left behind; returns how many directories."""
        removed = 0
        for path in self.root.glob("tmp/*"):
            name = path.name.rpartition("-")[0]
            try:
                with FileLock(self._lock_path(name), timeout=0):
                    shutil.rmtree(path, ignore_errors=True)
                    removed += 1
            except Timeout:
                continue  # another process is building in it
            except OSError:
                break  # a read-only store is fine unless this run needs to write
        self.unfinished.sweep()
        return removed

    def remove(self, path: Path) -> None:
        """Removes one artifact, out of sight first so that no reader sees half of it."""
        with self.writing():
            (self.root / "tmp").mkdir(parents=True, exist_ok=True)
            doomed = self.root / "tmp" / f"removed-{uuid.uuid4().hex[:8]}"
            path.rename(doomed)
            shutil.rmtree(doomed)

    def _lock_path(self, name: str) -> Path:
        path = lock_path(self.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _marks(self, inputs: Mapping[str, Artifact]) -> dict[str, list[int]]:
        """Marks of the files of inputs that somebody else may write into, by their names."""
        return {
            f"{name}/{file}": link_mark_of(one.path / file)
            for name, one in inputs.items()
            for file in borrowed_files(read_manifest(one.path))
        }

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns a full disk or a read-only build directory into an error that says so.

        Raises:
            StoreError: The block met an OSError.
        """
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StoreError:
        free = shutil.disk_usage(_existing(self.root)).free >> 20
        return StoreError(
            "the build directory cannot be written",
            where=error.filename or str(self.root),
            why=f"{error.strerror or error}; {free} MiB are free there",
            fix="Free space or correct the permissions, or choose another place with --build-dir; "
            f"what was already published is kept{self._held() if error.errno in _FULL else ''}",
        )

    def _held(self) -> str:
        held = self.unfinished.held()
        return f". {held}" if held else ""


def _tidy(directory: Path) -> None:
    """Removes empty folders, which no manifest lists, and refuses what is neither file nor folder.

    Raises:
        StoreError: There is a link, a pipe or a device, which a manifest cannot vouch for.
    """
    for folder, _, _ in os.walk(directory, topdown=False):
        if folder != str(directory) and not os.listdir(folder):  # noqa: PTH208  to see if it is empty
            Path(folder).rmdir()
    for name, kind in oddities_below(directory):
        if kind != "an empty folder":
            raise StoreError(
                "a stage left something that is no file",
                where=name,
                why=f"It is {kind}",
                fix="Report it with the recipe; the tools of this stage should write files",
            )


def _reference(artifact: Artifact) -> dict[str, str]:
    return {"key": artifact.key, "digest": artifact.digest}


def _chain(inputs: Mapping[str, Artifact]) -> dict[str, dict[str, str]]:
    """Every artifact this one descends from, by stage: its chain of custody."""
    chain: dict[str, dict[str, str]] = {}
    for name, artifact in inputs.items():
        chain.update(read_manifest(artifact.path).get("chain", {}))
        chain[name] = _reference(artifact)
    return chain


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
