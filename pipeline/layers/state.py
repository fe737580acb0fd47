"""How far a walk over the layers has come, kept on disk for a run that goes on where it ended."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline._version import __version__
from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.rank_file import Described, RankFile
from pipeline.layers.arrays import as_array
from pipeline.layers.left import FINISHED
from pipeline.layers.weights import DTYPES
from pipeline.processor import processor_name
from pipeline.source.safetensors_header import StoredTensor, read_header
from pipeline.source.threads import chosen_instructions, order_in_use
from pipeline.store.files import fsync

INTERVAL_S = 20.0
"""Work of fewer seconds is not worth a file."""
# A save never takes more than one part in so many of a run's time, however slow the disk is.
WORK_PER_SAVE = 20
_IDENTITY, _DIGEST = "identity", "digest"


@dataclass(frozen=True)
class Progressed:
    """What a walk left.

    Attributes:
        finished: Layers whose work is done.
        tensors: Hidden states behind the last of them, as they were given to :meth:`State.save`.
    """

    finished: int
    tensors: list[torch.Tensor]


class State:
    """The file of a walk: whole or not there, and of use to nobody who computes otherwise.

    What is saved is written beside the file and renamed, without a copy in memory. So whatever a
    layer leaves elsewhere has to be on the disk before :meth:`save` is called.

    Args:
        path: The file, in a directory that belongs to what is being made.
        identity: Whatever decides the bits of the hidden states and is not in the name of the
            directory, as JSON values; see :func:`computing`.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        text = json.dumps(identity, sort_keys=True)
        self._identity = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        self._next = time.monotonic() + INTERVAL_S

    @property
    def due(self) -> bool:
        """Whether enough work was done since the last time for another save."""
        return time.monotonic() >= self._next

    def save(
        self,
        finished: int,
        tensors: Sequence[torch.Tensor],
        *,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """Replaces what the file holds.

        Args:
            finished: Layers whose work is done, and is on the disk.
            tensors: What the next layer needs.
            first: Brings that work to the disk; its time counts as the save's.

        Raises:
            OSError: The file cannot be written; what it held before is still there.
        """
        begun = time.monotonic()
        first()
        arrays = {str(number): as_array(tensor) for number, tensor in enumerate(tensors)}
        arrays |= {FINISHED: np.array([finished], np.int64), _IDENTITY: self._identity}
        arrays[_DIGEST] = _digest(arrays)
        described = {
            name: Described(array.dtype.name, array.shape) for name, array in arrays.items()
        }
        part = self._path.with_suffix(".part")
        try:
            with RankFile(part, described) as file:
                for name, array in arrays.items():
                    file.write(name, array)
                file.sync()
            part.replace(self._path)
        finally:
            # On a full disk it is what others lack.
            part.unlink(missing_ok=True)
        fsync(self._path.parent)
        now = time.monotonic()
        self._next = now + max(INTERVAL_S, WORK_PER_SAVE * (now - begun))

    def load(self) -> Progressed | None:
        """Returns what was saved; None where nothing fits, or the file is damaged."""
        try:
            header = read_header(self._path)
            arrays = {name: _read(self._path, stored) for name, stored in header.items()}
            digest, identity = arrays.pop(_DIGEST), arrays[_IDENTITY]
            if not np.array_equal(identity, self._identity):
                return None
            if not np.array_equal(digest, _digest(arrays)):
                return None
            finished = int(arrays[FINISHED].view(np.int64)[0])
            tensors = [
                torch.from_numpy(arrays[str(number)])
                .view(DTYPES[header[str(number)].dtype])
                .reshape(header[str(number)].shape)
                for number in range(len(arrays) - 2)
            ]
        except (OSError, ValueError, KeyError):
            return None
        return Progressed(finished, tensors)


def as_tensor(value: Any) -> torch.Tensor:
    """Makes a tensor of a JSON value, to be saved beside others; see :func:`from_tensor`."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_tensor(tensor: torch.Tensor) -> Any:
    """Returns the value that :func:`as_tensor` was given."""
    return json.loads(bytes(tensor.tolist()))


def goes_on(what: str, finished: int, layers: int) -> str:
    """Says that an earlier run's work is gone on with.

    Args:
        what: What that run did: ``computing the source``.
        finished: Layers that it finished.
        layers: Of the model.
    """
    after = f"{what}: an earlier run ended after layer {finished} of {layers}"
    return f"{after}; going on with layer {finished + 1}" if finished < layers else after


def not_kept(what: str, error: OSError) -> str:
    """Says that a state could not be saved, which nothing that is computed needs.

    Args:
        what: What has come how far: ``the source is computed``.
        error: What the operating system says.
    """
    return (
        f"warning: how far {what} cannot be kept ({error.strerror}), "
        "so a run that is killed begins it anew"
    )


def computing(device: torch.device | None = None) -> dict[str, Any]:
    """Says what decides the bits of a sum on this machine, beyond the versions of a key.

    This package's own version is part of it: another one may compute or count otherwise.

    Args:
        device: What is computed on; None is the CPU.
    """
    on_cuda = device is not None and device.type == "cuda"
    return {
        "version": __version__,
        "threads": torch.get_num_threads(),
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "chosen": chosen_instructions(),
        "order": order_in_use(),
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
    }


def _digest(arrays: Mapping[str, Array]) -> Array:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].nbytes} ".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _read(path: Path, stored: StoredTensor) -> Array:
    """Reads into memory of its own: a mapped page would count as well."""
    found = np.fromfile(path, np.uint8, count=stored.size, offset=stored.start)
    if len(found) < stored.size:
        raise ValueError(path.name)
    return found
