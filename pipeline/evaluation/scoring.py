"""How far one model's next-token distributions are from another's, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.windows import Window
from pipeline.layers.blocks import InBlocks

Scorer = Callable[[torch.Tensor], torch.Tensor]
"""Maps ids, int64 [batch, length], to logits, float32 [batch, length, vocabulary].

Each row is a text from its beginning, with anything behind its end: a logit depends on the ids up
to its own position alone. The logits may be on another device than the ids.
"""

# Logits of one batch, in elements.
BATCH_LOGITS = 1 << 26
BATCH_TOKENS = 4096
# Logits of the tokens that are compared at once, of which several copies are alive.
PIECE_LOGITS = 1 << 22


@runtime_checkable
class AllAtOnce(Protocol):
    """A model that wants all batches before it computes the first, because it is read for them."""

    def logits(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yields what a :data:`Scorer` gives for each batch, in order."""

    def often(self) -> AbstractContextManager[None]:
        """Returns a context manager for calls that follow each other, each of few tokens."""


Model = Scorer | AllAtOnce


def often(model: Model) -> AbstractContextManager[None]:
    """Returns a context manager in which a model is asked again and again, for few tokens each.

    It gives the same bits for every kind of model, but others than outside of it: see
    :class:`.layers.blocks.InBlocks`.
    """
    return model.often() if isinstance(model, AllAtOnce) else InBlocks()


def logits_of(model: Model, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yields the logits of each batch of ids, in order, when they are asked for.

    Args:
        model: Whatever computes them.
        batches: Ids, int64 [batch, length] each.
    """
    return model.logits(batches) if isinstance(model, AllAtOnce) else map(model, batches)


@dataclass(frozen=True)
class TokenScores:
    """What both models make of tokens that are scored, in nats; arrays of one length.

    Attributes:
        source_nll: Negative log-likelihood of each token under the source, float32.
        nll: The same under the other model, float32.
        kl: KL divergence of the other model's distribution from the source's, float32.
        agrees: Whether both models' most likely token is the same.
    """

    source_nll: NDArray[np.float32]
    nll: NDArray[np.float32]
    kl: NDArray[np.float32]
    agrees: NDArray[np.bool_]

    def __len__(self) -> int:
        """Counts the tokens."""
        return len(self.nll)

    def part(self, start: int, end: int) -> TokenScores:
        """Returns those of some tokens."""
        return TokenScores(*(values[start:end] for values in self._arrays()))

    @classmethod
    def joined(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """Puts the tokens of one or more behind one another."""
        return cls(
            *(np.concatenate(values) for values in zip(*map(cls._arrays, parts), strict=True))
        )

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self.source_nll, self.nll, self.kl, self.agrees


def scorer_of(model: Any, device: torch.device) -> Scorer:
    """Makes a scorer of a causal language model of transformers.

    Args:
        model: Its forward takes ``input_ids`` and ``use_cache``.
        device: Where it is.
    """

    @torch.inference_mode()
    def scored(ids: torch.Tensor) -> torch.Tensor:
        # No attention mask: behind a causal one, padding on the right changes nothing before it.
        logits: torch.Tensor = model(input_ids=ids.to(device), use_cache=False).logits
        return logits.float()

    return scored


def compare(
    source: Model,
    other: Model,
    windows: Sequence[Window],
    vocabulary: int,
    advance: Callable[[float], None] = lambda _tokens: None,
) -> list[TokenScores]:
    """Scores every window under both models.

    Args:
        source: The model that the other is held against; its vocabulary counts.
        other: Another one; tokens beyond the source's vocabulary are left out.
        windows: What to score.
        vocabulary: The size of the source's vocabulary, which decides how much is scored at once.
        advance: Called with the number of tokens just scored.

    Returns:
        The scores of each window's scored tokens, in the windows' order.
    """
    found: dict[int, TokenScores] = {}
    for batch, pieces in predictions((source, other), windows, vocabulary):
        scores = TokenScores.joined(
            [compare_logits(expected, compared, there) for (expected, compared), there in pieces]
        )
        found |= zip(batch, split(scores, [windows[index] for index in batch]), strict=True)
        advance(len(scores))
    return [found[index] for index in range(len(windows))]


Pieces = Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]


def predictions(
    models: Sequence[Model], windows: Sequence[Window], vocabulary: int
) -> Iterator[tuple[list[int], Pieces]]:
    """Computes what models say of the windows' scored tokens, some windows at a time.

    Args:
        models: The models.
        windows: What to score.
        vocabulary: Logits of each token, which decides how much is scored at once.

    Yields:
        The indices of the windows, and pieces of what is said of them: the logits of each model,
        [tokens, vocabulary or more], and the tokens that stand there, int64 [tokens]. Tokens of one
        window come behind those of another; the pieces are used up before the next windows.
    """
    groups = list(batches([window.ids for window in windows], vocabulary))
    ids = [padded([windows[index].ids for index in batch]) for batch in groups]
    found = [logits_of(model, ids) for model in models]
    for batch, rows in zip(groups, ids, strict=True):
        yield batch, _pieces([windows[index] for index in batch], rows, found, vocabulary)


def _pieces(
    windows: Sequence[Window],
    ids: torch.Tensor,
    found: Sequence[Iterator[torch.Tensor]],
    vocabulary: int,
) -> Pieces:
    """Computes the next batch of each model, and gives it token by token."""
    # Where a token is predicted from: the position before it, in all rows behind one another.
    width = ids.shape[1]
    places = torch.cat(
        [
            torch.arange(row * width + window.first - 1, row * width + len(window.ids) - 1)
            for row, window in enumerate(windows)
        ]
    )
    logits = [next(each).flatten(0, 1) for each in found]
    for some in torch.split(places, piece_sizes(len(places), vocabulary)):
        yield (
            tuple(each[some.to(each.device)] for each in logits),
            ids.flatten()[some + 1],
        )


def piece_sizes(tokens: int, vocabulary: int) -> list[int]:
    """Cuts a number of tokens into pieces that are compared at once.

    None has a single token unless there is no other: torch adds the numbers of a single row up in
    another order than those of several.
    """
    size = max(2, PIECE_LOGITS // vocabulary)
    sizes = [size] * (tokens // size)
    left = tokens % size
    if left == 1 and sizes:
        sizes[-1] += 1
    elif left:
        sizes.append(left)
    return sizes


def split(scores: TokenScores, windows: Sequence[Window]) -> Iterator[TokenScores]:
    """Yields each window's part of scores that :func:`predictions` put behind one another."""
    done = 0
    for window in windows:
        yield scores.part(done, done + window.scored)
        done += window.scored


def compare_logits(source: torch.Tensor, other: torch.Tensor, targets: torch.Tensor) -> TokenScores:
    """Compares two models' predictions of the same tokens.

    Args:
        source: Logits, float32 [tokens, vocabulary].
        other: Logits of the other model, of the same tokens of the vocabulary or more.
        targets: The tokens that stand there, int64 [tokens].
    """
    vocabulary = source.shape[-1]
    p = torch.log_softmax(source, dim=-1)
    q = torch.log_softmax(other.to(source.device)[..., :vocabulary], dim=-1)
    there = targets.to(source.device).unsqueeze(-1)
    agrees = p.argmax(dim=-1) == q.argmax(dim=-1)
    source_nll, nll = (-x.gather(-1, there).squeeze(-1) for x in (p, q))
    divergence = (p.exp() * (p - q)).sum(dim=-1)
    return TokenScores(*(x.cpu().numpy() for x in (source_nll, nll, divergence, agrees)))


def batches(rows: Sequence[Sequence[int]], vocabulary: int) -> Iterator[list[int]]:
    """Puts rows of ids together that are about as long, within the limits of this module.

    Args:
        rows: The rows.
        vocabulary: Logits of each token.

    Yields:
        Indices of rows, the longest first, so that what does not fit fails at once.
    """
    limit = min(BATCH_TOKENS, BATCH_LOGITS // vocabulary)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    while order:
        count = max(1, limit // len(rows[order[0]]))
        yield order[:count]
        order = order[count:]


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Makes int64 [rows, longest] of rows of ids, each filled up with its own last."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows])
