"""Source and checkpoint as parts that are loaded one at a time, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.checkpoint import open_checkpoint
from pipeline.checkpoint.sources import QuantizedFolder
from pipeline.layers.blocks import InBlocks, unread
from pipeline.layers.one_layer import FIRST_LAYER, another_layer, empty_layer
from pipeline.layers.parts import HEAD_BYTES, EmbeddingByRows, HeadInBlocks, Part
from pipeline.layers.weights import SnapshotWeights
from pipeline.models.facts import ModelFacts
from pipeline.models.sizes import parameters
from pipeline.reference.kv_cache import ATTENTION_NAME
from pipeline.reference.linear import float32_tensor
from pipeline.reference.model import Room, config_of, fill_layer
from pipeline.source.loading import load_config
from pipeline.source.snapshot import EMBEDDING, HEAD, NORM

# Parts of two models that together take no more stay in memory between walks.
KEPT_BYTES = 256 << 20
# Of a larger model, what stays in float32 while walks follow each other: all of 0.1 billion
# parameters. It is more than scoring takes where layers are small and texts are short.
OFTEN_BYTES = 400 << 20
# Of so many shapes of batches, and of no larger ones, the mask is kept.
SHAPES, SHAPE_BYTES = 64, 2 << 20
_LAYER = FIRST_LAYER.removesuffix(".")


def source_by_layer(directory: Path, device: torch.device) -> ByLayer:
    """Opens a Hugging Face model that computes what :func:`.source.load_source` loads.

    Raises:
        SourceError: transformers cannot read its configuration, or a file is damaged.
    """
    facts = ModelFacts.from_directory(directory)
    config = load_config(directory)
    if facts.quantized is not None and hasattr(config, "quantization_config"):
        del config.quantization_config
    if facts.quantized is not None:
        return _Source(facts, config, device, _Dequantized(directory))
    return _Source(facts, config, device, _Stored(directory))


def checkpoint_by_layer(directory: Path, device: torch.device) -> ByLayer:
    """Opens a checkpoint directory that computes what :func:`.model.load_reference` loads.

    Raises:
        CheckpointError: The directory is not a complete checkpoint.
        UnsupportedError: Its architecture or format is not one of ours.
    """
    return _Checkpoint(directory, device)


class ByLayer:
    """What both have in common; a small model keeps its parts.

    Args:
        facts: The model's.
        config: transformers' configuration of it.
        device: Where the parts compute.
        attention: An attention function of transformers; None is its own choice.
    """

    def __init__(
        self, facts: ModelFacts, config: Any, device: torch.device, attention: str | None = None
    ) -> None:
        self.layers, self.hidden_size = facts.num_hidden_layers, facts.hidden_size
        self.vocabulary, self.device = facts.vocab_size, device
        self._config, self._attention = config, attention
        self._is_small = 2 * 4 * parameters(facts) <= KEPT_BYTES
        self._kept: dict[int, Part] = {}
        # Bytes for parts that are yet to be kept.
        self._room_left = KEPT_BYTES if self._is_small else 0
        # Whether weights are read when they are multiplied, and not when their layer is loaded.
        self._unread = False
        # Of one layer of each kind, whose weights are replaced by those of the next unless they
        # are kept.
        self._models: dict[str, Any] = {}
        # What a layer gets besides hidden states, by its kind and their shape.
        self._beside: dict[tuple[str, int, int], dict[str, Any]] = {}

    def close(self) -> None:
        """Lets go of the layers and closes the files; no part is of use afterwards."""
        # A layer that is kept knows this object, which so would live until the collector comes.
        self._kept.clear()
        self._models.clear()
        self._beside.clear()

    @contextmanager
    def often(self) -> Iterator[None]:
        """Returns a context manager for walks that follow each other, each of few tokens.

        Loading a layer takes as long as computing it then, since all of it goes to memory and
        back. So as many as :data:`OFTEN_BYTES` hold stay in memory, and on the CPU none of the
        others is loaded: see :class:`.blocks.InBlocks`.
        """
        self._unread = self.device.type == "cpu"
        self._forget(OFTEN_BYTES)
        try:
            with InBlocks():
                yield
        finally:
            self._unread = False
            self._forget()

    def part(self, number: int) -> Part:
        """Loads a part; unless it is kept, one that was loaded before is lost."""
        if number in self._kept:
            return self._kept[number]
        if number == 0:
            embedding = EmbeddingByRows(self._embedding_rows)
            return Part(0, {"model.embed_tokens": embedding}, embedding)
        return self._layer_part(number) if number <= self.layers else self._last_part()

    def _forget(self, room: int = 0) -> None:
        """Lets go of parts, unless all are kept, and gives those that come next so many bytes."""
        if not self._is_small:
            self._kept.clear()
            self._models.clear()
            self._room_left = room

    def _stays(self, weights: int) -> bool:
        """Says whether a part of so many weights is to be kept, and takes their bytes if so."""
        stays = 4 * weights <= self._room_left
        if stays:
            self._room_left -= 4 * weights
        return stays

    def _layer_part(self, number: int) -> Part:
        index = number - 1
        kinds = getattr(self._config, "layer_types", None)
        kind = str(kinds[index]) if kinds else ""
        if kind not in self._models:
            self._models[kind] = self._empty(index)
        model = self._models[kind]
        layer = model.model.layers[0]
        stays = self._stays(sum(weight.numel() for weight in layer.parameters()))
        if stays:
            layer = another_layer(model, index)
        unread = self._unread and not stays
        if unread:
            self._describe(layer, index)
        else:
            self._fill(layer, index, again=not stays)
            self._release()
            layer.to(self.device)
        modules = {
            f"model.layers.{index}{f'.{name}' if name else ''}": module
            for name, module in layer.named_modules()
        }
        run = partial(self._run, model, layer, kind)
        part = Part(number, modules, partial(self._released, run) if unread else run)
        if stays:
            self._kept[number] = part
        return part

    def _released(self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
        output = run(x)
        self._release()
        return output

    def _run(self, model: Any, layer: Any, kind: str, hidden: torch.Tensor) -> torch.Tensor:
        """Runs one layer, in the mask and the positions that transformers makes for the shape.

        A whole model makes them once for all layers; so they are made once here for all that are
        alike.
        """
        shape = (kind, *hidden.shape[:2])
        output: torch.Tensor
        if beside := self._beside.get(shape):
            output = layer(hidden, **beside)
            return output
        seen: dict[str, Any] = {}
        own, model.model.layers[0] = model.model.layers[0], layer
        handle = layer.register_forward_pre_hook(
            lambda _layer, _inputs, named: seen.update(named), with_kwargs=True
        )
        try:
            output = model.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        finally:
            handle.remove()
            model.model.layers[0] = own
        if len(self._beside) < SHAPES and _bytes(seen) <= SHAPE_BYTES:
            self._beside[shape] = seen
        return output

    def _empty(self, index: int) -> Any:
        model = empty_layer(self._config, index, torch.float32, self._attention)
        model.model.norm = torch.nn.Identity()
        model.model.rotary_emb.to(self.device)
        return model

    def _last_part(self) -> Part:
        norm = empty_layer(self._config, 0, torch.float32).model.norm
        norm.weight = torch.nn.Parameter(self._norm().to(self.device), requires_grad=False)
        head: torch.nn.Module
        weights = self.vocabulary * self.hidden_size
        stays = 4 * weights <= HEAD_BYTES and self._stays(weights)
        if self._unread and not stays:
            head = torch.nn.Linear(self.hidden_size, self.vocabulary, bias=False, device="meta")
            head.weight = unread((self.vocabulary, self.hidden_size), self._fill_head)
        else:
            head = HeadInBlocks(self._head_rows, self.vocabulary, self.hidden_size)
        modules = {"model.norm": norm, "lm_head": head}
        part = Part(self.layers + 1, modules, lambda hidden: head(norm(hidden)))
        if stays:
            self._kept[part.number] = part
        return part

    def _embedding_rows(self, ids: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _head_rows(self, rows: slice) -> torch.Tensor:
        raise NotImplementedError

    def _norm(self) -> torch.Tensor:
        raise NotImplementedError

    def _fill(self, layer: torch.nn.Module, index: int, *, again: bool) -> None:
        """Reads the weights of a layer; ``again`` is where another's will take their place."""
        raise NotImplementedError

    def _describe(self, layer: torch.nn.Module, index: int) -> None:
        """Gives a layer weights that are read when they are multiplied, and all else as it is."""
        raise NotImplementedError

    def _fill_head(self, rows: slice, out: torch.Tensor) -> None:
        out.copy_(self._head_rows(rows))

    def _release(self) -> None:
        """Lets go of what reading has left in memory."""
        raise NotImplementedError


class _Stored:
    """The tensors of a snapshot in floating point, as float32."""

    def __init__(self, directory: Path) -> None:
        self._read = SnapshotWeights(directory)

    def __contains__(self, name: str) -> bool:
        return name in self._read

    def tensor(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        return self._read(name, rows)

    def parameter(self, name: str, shape: Sequence[int]) -> torch.nn.Parameter:
        """A matrix is read when it is multiplied."""
        if len(shape) == 2:
            return unread(shape, lambda rows, out: self.fill(name, out, rows))
        return _read_only(self._read(name))

    def fill(self, name: str, out: torch.Tensor, rows: slice = slice(None)) -> None:
        """Reads rows of a tensor into memory that is there."""
        self._read.into(out, name, rows)

    def release(self) -> None:
        """Has nothing to let go of."""

    def close(self) -> None:
        self._read.close()


class _Dequantized:
    """The tensors of a quantized snapshot, as its codes and scales say."""

    def __init__(self, directory: Path) -> None:
        self._folder = QuantizedFolder(directory)

    def __contains__(self, name: str) -> bool:
        return self._folder.tensor(name) is not None or self._folder.is_quantized(_linear(name))

    def tensor(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        ends = name.endswith(".weight")
        array = self._folder.weight(_linear(name)) if ends else self._folder.tensor(name)
        return float32_tensor(np.asarray(array)[rows])

    def parameter(self, name: str, shape: Sequence[int]) -> torch.nn.Parameter:  # noqa: ARG002
        """All of it is turned back at once."""
        return _read_only(self.tensor(name))

    def fill(self, name: str, out: torch.Tensor, rows: slice = slice(None)) -> None:
        out.copy_(self.tensor(name, rows))

    def release(self) -> None:
        self._folder.release()

    def close(self) -> None:
        self.release()


def _read_only(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor.float(), requires_grad=False)


def _linear(name: str) -> str:
    return name.removesuffix(".weight")


class _Source(ByLayer):
    def __init__(
        self,
        facts: ModelFacts,
        config: Any,
        device: torch.device,
        tensors: _Stored | _Dequantized,
    ) -> None:
        super().__init__(facts, config, device)
        self._tensors = tensors
        tied = facts.tie_word_embeddings or HEAD not in tensors
        self._head_name = EMBEDDING if tied else HEAD

    def close(self) -> None:
        super().close()
        self._tensors.close()

    def _embedding_rows(self, ids: torch.Tensor) -> torch.Tensor:
        found = torch.empty(len(ids), self.hidden_size)
        for place, row in enumerate(ids.tolist()):
            found[place] = self._tensors.tensor(EMBEDDING, slice(row, row + 1))[0]
        self._release()
        return found

    def _head_rows(self, rows: slice) -> torch.Tensor:
        found = self._tensors.tensor(self._head_name, rows).float()
        self._release()
        return found

    def _fill_head(self, rows: slice, out: torch.Tensor) -> None:
        self._tensors.fill(self._head_name, out, rows)
        self._release()

    def _norm(self) -> torch.Tensor:
        return self._tensors.tensor(NORM).float()

    def _fill(self, layer: torch.nn.Module, index: int, *, again: bool) -> None:  # noqa: ARG002
        if any(weight.is_meta for weight in layer.parameters()):
            layer.to_empty(device=self.device)
        for name, weight in layer.named_parameters():
            self._tensors.fill(f"model.layers.{index}.{name}", weight.data)

    def _describe(self, layer: torch.nn.Module, index: int) -> None:
        for name, there in [*layer.named_parameters()]:
            owner, _, own = name.rpartition(".")
            found = self._tensors.parameter(f"model.layers.{index}.{name}", there.shape)
            setattr(layer.get_submodule(owner), own, found)

    def _release(self) -> None:
        self._tensors.release()


class _Checkpoint(ByLayer):
    def __init__(self, directory: Path, device: torch.device) -> None:
        self._checkpoint = open_checkpoint(directory)
        facts = self._checkpoint.facts
        super().__init__(facts, config_of(facts), device, ATTENTION_NAME)
        self._facts, self._weights = facts, self._checkpoint.weights()
        self._kv_cache = self._checkpoint.config.quantization.kv_cache_algo
        self._room: Room = {}

    def close(self) -> None:
        super().close()
        self._room.clear()

    def _embedding_rows(self, ids: torch.Tensor) -> torch.Tensor:
        found = float32_tensor(self._weights.vocab_embedding[ids.numpy()])
        self._release()
        return found

    def _head_rows(self, rows: slice) -> torch.Tensor:
        found = float32_tensor(self._weights.lm_head.weight[rows])
        self._release()
        return found

    def _norm(self) -> torch.Tensor:
        return float32_tensor(self._weights.ln_f)

    def _fill(self, layer: torch.nn.Module, index: int, *, again: bool) -> None:
        room = self._room if again else None
        fill_layer(layer, self._weights.layers[index], self._facts, self._kv_cache, room)

    def _describe(self, layer: torch.nn.Module, index: int) -> None:
        stored = self._weights.layers[index]
        fill_layer(layer, stored, self._facts, self._kv_cache, reads=False)

    def _forget(self, room: int = 0) -> None:
        super()._forget(room)
        self._room.clear()

    def _release(self) -> None:
        self._checkpoint.release()


def _bytes(named: Mapping[str, Any]) -> int:
    """Those of tensors, also of a pair, as the tables of rotary positions come."""
    found = (each if isinstance(each, tuple) else (each,) for each in named.values())
    return sum(one.nbytes for one in chain(*found) if isinstance(one, torch.Tensor))
