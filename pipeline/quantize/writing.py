"""Writes a checkpoint one layer after another, every tensor at its final place in its rank's file.

Nothing of a layer is in memory when the next one is made. The bytes are those of the safetensors
library, which takes all tensors of a file at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.rank_file import Described, RankFile
from pipeline.checkpoint.reader import DTYPE_NAMES
from pipeline.checkpoint.validate import rank_path
from pipeline.errors import StageError
from pipeline.models.facts import ModelFacts
from pipeline.models.ranks import RankShare
from pipeline.progress import Progress
from pipeline.quantize.resuming import CONFIG, Resume
from pipeline.reading.closing import Closing
from pipeline.recipe.schema import Recipe
from pipeline.source import snapshot
from pipeline.source.safetensors_header import BrokenHeaderError, read_header
from pipeline.store.files import write_atomically

EMBEDDING, HEAD = "transformer.vocab_embedding.weight", "lm_head.weight"
LAST_NORM = "transformer.ln_f.weight"
_LAYERS = "transformer.layers."
Tensors = dict[str, Array]


class Maker(Protocol):
    """What makes the tensors of a checkpoint."""

    @property
    def head(self) -> str:
        """The name of the head in the source: the embedding's where they are tied."""

    def layer(self, index: int) -> Sequence[Tensors]:
        """Returns a layer's tensors for each tensor-parallel rank, named without the layer's."""

    def kind(self, index: int) -> Hashable:
        """Tells layers apart whose tensors differ in names, dtypes or shapes."""

    def plain(self, name: str, rows: slice = slice(None)) -> Array:
        """Returns rows of a tensor of the source, in the checkpoint's dtype."""


@dataclass(frozen=True)
class Work:
    """What is told of the work on a checkpoint.

    Attributes:
        what: What is done to the layers.
        progress: Is told of each.
        tokens: Of the text that goes through them.
    """

    what: str
    progress: Progress
    tokens: int = 0


def write_checkpoint(
    maker: Maker,
    facts: ModelFacts,
    recipe: Recipe,
    output: Path,
    *,
    work: Work,
    resume: Resume | None = None,
    kept: bool = False,
) -> None:
    """Writes one ``rankN.safetensors`` per rank.

    Args:
        maker: Is asked for the layers in their order.
        facts: The model's.
        recipe: The parallelism of ``compile`` counts.
        output: An existing directory.
        work: What is told of it.
        resume: Goes on where an earlier run ended, whose files are in ``output``; None begins and
            leaves nothing to go on with.
        kept: Whether ``output`` outlives a failure, so that another run may find the files.

    Raises:
        StageError: The files cannot be written, or layers of one kind differ.
    """
    with _Ranks(output, facts, recipe) as ranks:
        first, layers = _earlier(ranks, resume, work), facts.num_hidden_layers
        if first:
            from pipeline.layers.state import goes_on

            work.progress.note(goes_on(work.what, first, layers))
        with work.progress.layers(work.what, layers, work.tokens, done=first) as task:
            for index in range(first, layers):
                _write_layer(maker, ranks, index)
                if resume and resume.state.due and index + 1 < layers:
                    resume = _saved(index + 1, resume, ranks, work)
                task.advance()
        if kept:
            # config.json will say that all of them are there, so they must be there first.
            ranks.sync()


def head_of(facts: ModelFacts) -> str:
    """Names the tensor of the source that is the head."""
    return snapshot.EMBEDDING if facts.tie_word_embeddings else snapshot.HEAD


def write_config(output: Path, config: Mapping[str, Any]) -> None:
    """Writes ``config.json``, behind all other files, which are on the disk: it says that a folder
    is whole.

    Raises:
        StageError: The disk is full, say.
    """
    with written(output):
        text = json.dumps(config, indent=2) + "\n"
        # Whoever finds it after a power failure finds the other files as well.
        write_atomically(output / CONFIG, text.encode(), synced=True)


@contextlib.contextmanager
def written(output: Path) -> Iterator[None]:
    """Turns what the operating system says against a checkpoint's files into an error.

    Raises:
        StageError: The files cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise not_written(output, error) from error


def not_written(output: Path, error: Exception) -> StageError:
    """Makes the error of a checkpoint whose files cannot be written."""
    return StageError(
        "the checkpoint cannot be written",
        where=str(output),
        why=str(error),
        fix="Free space on the disk, or keep the store on another one",
    )


def _earlier(ranks: _Ranks, resume: Resume | None, work: Work) -> int:
    """How many layers an earlier run has finished."""
    found = resume.state.load() if resume else None
    if found is None or not found.tensors or not ranks.reopen():
        return 0
    assert resume is not None
    *states, digests = found.tensors
    with written(ranks.folder):
        there = b"".join(ranks.digests(found.finished))
    if digests.nbytes != len(there) or bytes(digests.tolist()) != there:
        work.progress.note(f"{work.what} begins anew: what an earlier run left was changed")
        ranks.forget()
        return 0
    resume.go_on(states)
    return found.finished


def _saved(finished: int, resume: Resume, ranks: _Ranks, work: Work) -> Resume | None:
    """Saves how far the files have come; None where there is no room, which ends nothing."""
    import torch

    from pipeline.layers.state import not_kept

    try:
        digests = torch.frombuffer(bytearray(b"".join(ranks.digests(finished))), dtype=torch.uint8)
        # The state says that these layers are there, so they must be there first.
        resume.state.save(finished, [*resume.states(), digests], first=ranks.sync)
    except OSError as error:
        work.progress.note(not_kept("the checkpoint is written", error))
        return None
    return resume


def _write_layer(maker: Maker, ranks: _Ranks, index: int) -> None:
    layer = maker.layer(index)
    if not ranks.opened:
        ranks.create(maker, layer)
    ranks.write(index, layer)


class _Ranks(Closing):
    """The files of all ranks, open for writing."""

    def __init__(self, folder: Path, facts: ModelFacts, recipe: Recipe) -> None:
        self.folder, self._facts = folder, facts
        self._tp, self._pp = recipe.compile.tensor_parallel, recipe.compile.pipeline_parallel
        self._each = facts.num_hidden_layers // self._pp
        self._rows = RankShare(facts, self._tp).vocabulary_rows
        self._files: list[RankFile] = []
        self._tensors: list[Mapping[str, Described]] = []
        self._digests: list[bytes] = []

    @property
    def opened(self) -> bool:
        return bool(self._files)

    def reopen(self) -> bool:
        """Opens what an earlier run left; False where a file is gone or not whole."""
        try:
            headers = [read_header(self._path(rank)) for rank in range(self._tp * self._pp)]
        except (OSError, BrokenHeaderError):
            return False
        for rank, header in enumerate(headers):
            described = {
                name: Described(DTYPE_NAMES[stored.dtype], stored.shape)
                for name, stored in header.items()
            }
            self._open(rank, described, keep=True)
        return True

    def forget(self) -> None:
        """Closes the files; they are to be created anew."""
        self.close()
        self._tensors.clear()
        self._digests.clear()

    def digests(self, finished: int) -> list[bytes]:
        """Returns the SHA-256 of what the files have beside layers, and of each finished layer.

        Raises:
            OSError: A file cannot be read.
        """
        while len(self._digests) <= finished:
            self._digests.append(self._digest(len(self._digests) - 1))
        return self._digests[: finished + 1]

    def _digest(self, index: int) -> bytes:
        stage, local = divmod(index, self._each)
        within = _name(local, "") if index >= 0 else None
        found = hashlib.sha256()
        for rank, (file, tensors) in enumerate(zip(self._files, self._tensors, strict=True)):
            if within is None:
                names = [name for name in tensors if not name.startswith(_LAYERS)]
            elif rank // self._tp == stage:
                names = [name for name in tensors if name.startswith(within)]
            else:
                names = []
            found.update(file.digest(sorted(names)))
        return found.digest()

    def create(self, maker: Maker, first: Sequence[Tensors]) -> None:
        """Begins the files, and writes what they have beside layers.

        Args:
            maker: Tells the layers' kinds.
            first: Layer 0.
        """
        kinds = {maker.kind(0): _described(first)}
        for index in range(self._facts.num_hidden_layers):
            if maker.kind(index) not in kinds:
                kinds[maker.kind(index)] = _described(maker.layer(index))
        norm = maker.plain(snapshot.NORM)
        dtype = norm.dtype.name
        vocabulary = Described(dtype, (self._rows, self._facts.hidden_size))
        for rank in range(self._tp * self._pp):
            stage, tp_rank = divmod(rank, self._tp)
            tensors = {
                _name(local, name): tensor
                for local in range(self._each)
                for name, tensor in kinds[maker.kind(stage * self._each + local)][tp_rank].items()
            }
            if stage == 0:
                tensors[EMBEDDING] = vocabulary
            if stage == self._pp - 1:
                tensors |= {HEAD: vocabulary, LAST_NORM: Described(dtype, norm.shape)}
            self._open(rank, tensors)
        self._write_vocabulary(maker, EMBEDDING, snapshot.EMBEDDING, 0)
        self._write_vocabulary(maker, HEAD, maker.head, self._pp - 1)
        for file in self._of_stage(self._pp - 1):
            self._put(file, LAST_NORM, norm)

    def _write_vocabulary(self, maker: Maker, name: str, source: str, stage: int) -> None:
        """Copies a table by rows; those that pad the last rank stay the zeros that they are."""
        for rank, file in enumerate(self._of_stage(stage)):
            begin = rank * self._rows
            end = min(begin + self._rows, self._facts.vocab_size)
            for row in range(begin, end, snapshot.ROWS):
                piece = maker.plain(source, slice(row, min(row + snapshot.ROWS, end)))
                self._put(file, name, piece, (row - begin) * piece[0].nbytes)

    def write(self, index: int, layer: Sequence[Tensors]) -> None:
        """Writes a layer into the files of its stage.

        Raises:
            StageError: It has other tensors than the layers of its kind.
        """
        stage, local = divmod(index, self._each)
        begin = stage * self._tp
        for rank, tensors in enumerate(layer, begin):
            there = {
                name: tensor
                for name, tensor in self._tensors[rank].items()
                if name.startswith(_name(local, ""))
            }
            given = {_name(local, name): one for name, one in _described([tensors])[0].items()}
            if given != there:
                names = sorted(name for name, _ in there.items() ^ given.items())
                raise StageError(
                    f"layer {index} has other tensors than its file has room for",
                    where=names[0],
                    why="Their names, dtypes or shapes differ from those of the layers before it",
                )
            for name, array in tensors.items():
                self._put(self._files[rank], _name(local, name), array)

    def sync(self) -> None:
        """Waits until everything is on the disk."""
        with written(self.folder):
            for file in self._files:
                file.sync()

    def close(self) -> None:
        """Closes the files."""
        while self._files:
            self._files.pop().close()

    def _path(self, rank: int) -> Path:
        return rank_path(self.folder, rank)

    def _open(self, rank: int, tensors: Mapping[str, Described], *, keep: bool = False) -> None:
        with written(self.folder):
            self._files.append(RankFile(self._path(rank), tensors, keep=keep))
        self._tensors.append(tensors)

    def _of_stage(self, stage: int) -> list[RankFile]:
        return self._files[stage * self._tp : (stage + 1) * self._tp]

    def _put(self, file: RankFile, name: str, array: Array, at: int = 0) -> None:
        with written(self.folder):
            file.write(name, array, at)


def _name(local: int, name: str) -> str:
    return f"{_LAYERS}{local}.{name}"


def _described(layer: Sequence[Tensors]) -> list[dict[str, Described]]:
    return [
        {name: Described(array.dtype.name, array.shape) for name, array in tensors.items()}
        for tensors in layer
    ]
