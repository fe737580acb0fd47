"""Texts that go through a model part by part, all of them through one before the next is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.layers.parts import Part, Parts
from pipeline.layers.state import State, as_tensor, computing, from_tensor, goes_on, not_kept
from pipeline.progress import Progress, Silent

# Of hidden states that are kept between two layers. Texts that need more go in groups, each with a
# walk of its own.
HIDDEN_BYTES = 512 << 20
# A walk of fewer tokens is over before anybody asks how far it is.
REPORTED_TOKENS = 1024


class Observer(Protocol):
    """Who looks at the modules of a walk while they compute."""

    def watching(self, part: Part) -> AbstractContextManager[None]:
        """Returns a context manager in which the part is looked at."""

    def begin(self, batch: int) -> None:
        """Notes which batch of the walk comes next."""

    def end(self, batch: int) -> None:
        """Notes that a batch is through the last part; they come in order."""

    def seen(self) -> Any:
        """Returns what was seen in this walk so far, as JSON values."""

    def restore(self, seen: Any) -> None:
        """Takes what an earlier run had seen when it ended in this walk."""


class Unobserved:
    """Nobody."""

    def watching(self, part: Part) -> AbstractContextManager[None]:  # noqa: ARG002
        """Returns a context manager in which nobody looks."""
        return nullcontext()

    def begin(self, batch: int) -> None:
        """Drops the report."""

    def end(self, batch: int) -> None:
        """Drops the report."""

    def seen(self) -> Any:
        """Returns nothing."""
        return None

    def restore(self, seen: Any) -> None:
        """Drops the report."""


class Walker:
    """Computes the logits of texts by walks through the parts of a model.

    Batches are computed as they are given, so a logit has the bits that it has in a whole model.

    Args:
        parts: The model.
        name: Of the model, in reports and in the names of files.
        progress: Where long walks report.
        unfinished: Where a walk leaves how far it has come, for another run that makes the same
            walk; None leaves nothing.
    """

    def __init__(
        self,
        parts: Parts,
        name: str,
        *,
        progress: Progress | None = None,
        unfinished: Path | None = None,
    ) -> None:
        self.parts, self._name = parts, name
        self._progress = progress or Silent()
        self._unfinished = unfinished
        self.observer: Observer = Unobserved()

    def logits(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yields the logits of each batch, float32 [batch, length, vocabulary], in order.

        Args:
            batches: Token ids, int64 [batch, length]; each row is a text from its beginning.
        """
        for group in self._groups(batches):
            hidden = self._behind_layers(group)
            last = self._part(self.parts.layers + 1)
            for number in range(len(group)):
                yield self._logits(last, number, hidden)
            # The head goes before the next walk begins.
            del last

    def often(self) -> AbstractContextManager[None]:
        """Returns a context manager for walks that follow each other, each of few tokens."""
        return self.parts.often()

    def _groups(self, batches: Sequence[torch.Tensor]) -> Iterator[Sequence[torch.Tensor]]:
        most = HIDDEN_BYTES // (self.parts.hidden_size * 4)
        group: list[torch.Tensor] = []
        for batch in batches:
            if group and sum(one.numel() for one in group) + batch.numel() > most:
                yield group
                group = []
            group.append(batch)
        if group:
            yield group

    def _behind_layers(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The hidden states in front of the norm."""
        layers, state = self.parts.layers, self._state(batches)
        done, hidden = self._earlier(state, len(batches)) or (-1, [*batches])
        tokens = sum(batch.numel() for batch in batches)
        progress = self._progress if tokens >= REPORTED_TOKENS else Silent()
        description = f"computing the {self._name}"
        if done > 0:
            progress.note(goes_on(description, done, layers))
        with progress.layers(description, layers, tokens, done=max(done, 0)) as task:
            for number in range(done + 1, layers + 1):
                self._pass(number, hidden)
                if number:
                    task.advance()
                if state and state.due and not self._save(state, number, hidden):
                    # A full disk would be written to at every layer.
                    state = None
        return hidden

    @torch.inference_mode()
    def _part(self, number: int) -> Part:
        return self.parts.part(number)

    @torch.inference_mode()
    def _pass(self, number: int, hidden: list[torch.Tensor]) -> None:
        """Replaces what goes into a part by what comes out."""
        part = self.parts.part(number)
        with self.observer.watching(part):
            for batch, states in enumerate(hidden):
                self.observer.begin(batch)
                hidden[batch] = part.run(states.to(self.parts.device)).cpu()

    @torch.inference_mode()
    def _logits(self, last: Part, batch: int, hidden: list[torch.Tensor]) -> torch.Tensor:
        with self.observer.watching(last):
            self.observer.begin(batch)
            logits = last.run(hidden[batch].to(self.parts.device))
            self.observer.end(batch)
        # It is not needed again.
        hidden[batch] = hidden[batch].new_empty(0)
        return logits

    def _state(self, batches: Sequence[torch.Tensor]) -> State | None:
        if self._unfinished is None:
            return None
        digest = hashlib.sha256()
        for batch in batches:
            digest.update(f"{tuple(batch.shape)}".encode())
            digest.update(batch.contiguous().numpy().data)
        name = f"{self._name.replace(' ', '-')}-{digest.hexdigest()[:16]}"
        return State(self._unfinished / f"{name}.safetensors", computing(self.parts.device))

    def _save(self, state: State, number: int, hidden: list[torch.Tensor]) -> bool:
        """Says whether it could; if not, nothing is kept from then on."""
        try:
            state.save(number, [*hidden, as_tensor(self.observer.seen())])
        except OSError as error:
            # What is computed does not need it.
            self._unfinished = None
            self._progress.note(not_kept(f"the {self._name} is computed", error))
            return False
        return True

    def _earlier(self, state: State | None, batches: int) -> tuple[int, list[torch.Tensor]] | None:
        """How far an earlier run came, and its hidden states."""
        found = state.load() if state else None
        if found is None or len(found.tensors) != batches + 1:
            return None
        *hidden, seen = found.tensors
        self.observer.restore(from_tensor(seen))
        return found.finished, hidden
