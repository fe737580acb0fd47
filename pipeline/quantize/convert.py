"""Writes the checkpoint of a model that is quantized already: its codes and scales as they are.

What Hugging Face's layers have in several linears TensorRT-LLM has in one, and it cuts them over
ranks; both move values and change none. Where several linears cannot be one without changing a
value, the model is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checkpoint.cut import RankCut
from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.loading import as_loaded
from pipeline.checkpoint.quantization import INPUT_ORDER
from pipeline.checkpoint.reader import numpy_dtype
from pipeline.checkpoint.sources import QuantizedFolder, SourceLinear
from pipeline.errors import SourceError, UnsupportedError
from pipeline.formats import ALGOS
from pipeline.models.facts import LinearShape, ModelFacts
from pipeline.progress import Progress
from pipeline.quantize.export import checkpoint_config
from pipeline.quantize.formats import checkpoint_dtype
from pipeline.quantize.writing import Tensors, Work, write_checkpoint, write_config
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import EMBEDDING, HEAD

_ORIGINAL = "Set model.source to the checkpoint that this one was made from"


def convert(
    directory: Path, recipe: Recipe, output: Path, progress: Progress, *, kept: bool = False
) -> None:
    """Writes ``config.json`` and one ``rankN.safetensors`` per rank.

    Args:
        directory: A quantized snapshot.
        recipe: ``model.dtype``, ``quantize`` and the parallelism of ``compile`` count.
        output: An existing directory.
        progress: Is told of each layer.
        kept: Whether ``output`` outlives a failure.

    Raises:
        SourceError: Tensors of the folder contradict each other.
        UnsupportedError: Linears that are one in a checkpoint differ in what it has once, or scales
            do not fit the recipe's dtype.
        StageError: The files cannot be written.
    """
    conversion = _Conversion(QuantizedFolder(directory), recipe, str(directory))
    facts = conversion.facts
    work = Work("taking over the quantized weights", progress)
    write_checkpoint(conversion, facts, recipe, output, work=work, kept=kept)
    write_config(output, conversion.config())


class _Conversion:
    """One folder on its way into rank files."""

    def __init__(self, folder: QuantizedFolder, recipe: Recipe, place: str) -> None:
        self._folder, self._recipe, self._place = folder, recipe, place
        self.facts: ModelFacts = folder.facts
        self._stored = folder.stored
        self._dtype = checkpoint_dtype(recipe)
        ranks, self._pp = recipe.compile.tensor_parallel, recipe.compile.pipeline_parallel
        self._cuts = [RankCut(self.facts, ranks, rank) for rank in range(ranks)]
        own = not self.facts.tie_word_embeddings and folder.tensor(HEAD) is not None
        self.head = HEAD if own else EMBEDDING
        self._excluded = self._excluded_linears()

    def config(self) -> dict[str, Any]:
        """Builds ``config.json``, which says who converted what."""
        from pipeline._version import __version__

        config = checkpoint_config(self.facts, self._recipe, __version__)
        config["producer"] = {"name": "trtllm-pipeline", "version": __version__}
        section = config["quantization"]
        section["exclude_modules"] = ["lm_head", *self._excluded]
        if ALGOS[self._stored.quant_algo].group_sizes:
            section["has_zero_point"] = self._stored.zero_points
            if self._stored.ordered:
                section[INPUT_ORDER] = True
        return config

    def _excluded_linears(self) -> list[str]:
        """Fused linears that are in floating point, by the names that rank files have for them."""
        plain = [self.kind(index) for index in range(self.facts.num_hidden_layers)]
        if self._pp > 1 and any(names != plain[0] for names in plain):
            raise UnsupportedError(
                "some layers have linears in floating point that others have quantized",
                where=self._recipe.place("compile.pipeline_parallel"),
                why="Rank files number their layers from 0, so that exclude_modules cannot tell "
                "the layers of several pipeline ranks apart",
                fix="Set compile.pipeline_parallel to 1",
            )
        return [
            f"transformer.layers.{index}.{linear.name}"
            for index in range(self.facts.num_hidden_layers // self._pp)
            for linear in self.facts.linears
            if linear.name in plain[index]
        ]

    def _quantized(self, index: int, linear: LinearShape) -> bool:
        return self._folder.is_quantized(f"model.layers.{index}.{linear.source[0][0]}")

    def kind(self, index: int) -> tuple[str, ...]:
        """Names the linears of a layer that are in floating point."""
        return tuple(
            linear.name for linear in self.facts.linears if not self._quantized(index, linear)
        )

    def layer(self, index: int) -> list[Tensors]:
        """Joins the linears of a layer, and cuts them for each tensor-parallel rank."""
        source = f"model.layers.{index}."
        norms = {
            f"{norm.checkpoint}.weight": self.plain(f"{source}{norm.source}.weight")
            for norm in self.facts.family.norms
        }
        ranks: list[Tensors] = [dict(norms) for _ in self._cuts]
        for linear in self.facts.linears:
            parts = self._linear(linear, source, quantized=self._quantized(index, linear))
            for found, part in zip(ranks, parts, strict=True):
                found |= {f"{linear.name}.{name}": array for name, array in part.items()}
        self._folder.release()
        return ranks

    def _linear(self, linear: LinearShape, source: str, *, quantized: bool) -> Iterator[Tensors]:
        """Yields what each rank gets of a linear, by the ends of their names."""
        names = [f"{source}{name}" for name, _ in linear.source]
        if quantized:
            whole = self._whole(linear, names)
        else:
            plain = np.concatenate([self.plain(f"{name}.weight") for name in names])
        bias = self._bias(names)
        for cut in self._cuts:
            found = (
                cut.quantized(whole, linear, self._stored.quant_algo)
                if quantized
                else {"weight": cut.rows_and_columns(plain, linear)}
            )
            if bias:
                found["bias"] = cut.rows(np.concatenate(bias), linear)
            yield found

    def plain(self, name: str, rows: slice = slice(None)) -> Array:
        """Reads rows of a tensor in floating point, in the checkpoint's dtype."""
        tensor = self._folder.tensor(name)
        assert tensor is not None, name
        with np.errstate(over="ignore"):  # validation tells of what became infinite
            return tensor[rows].astype(numpy_dtype(self._dtype))

    def _bias(self, names: Sequence[str]) -> list[Array]:
        """Biases where the architecture has them; what else a tool wrote must be zero."""
        own = self.facts.attention_bias and names[0].endswith("q_proj")
        found = [f"{name}.bias" for name in names]
        if own:
            return [self.plain(name) for name in found]
        for name in found:
            values = self._folder.tensor(name)
            if values is not None and values.astype(np.float32).any():
                raise SourceError(
                    f"{name} is not zero",
                    where=self._place,
                    why=f"A {self.facts.architecture} has no bias there, so it would be lost",
                    fix=_ORIGINAL,
                )
        return []

    def _whole(self, linear: LinearShape, names: Sequence[str]) -> Tensors:
        """Joins the linears of the folder that are one in the checkpoint; codes are not packed."""
        parts = [self._folder.linear(name) for name in names]
        self._check_scales(parts, names)
        row, first = ALGOS[self._stored.quant_algo], parts[0]
        whole: Tensors = {"weight": np.concatenate([part.codes for part in parts])}
        scales = [part.scales.astype(np.float32) for part in parts]
        if row.scales == "tensor":
            whole["weights_scaling_factor"] = self._one(scales, "weight scale", linear)
        else:
            whole["weights_scaling_factor"] = np.concatenate(scales)
        if row.group_sizes:
            self._regroup(whole, parts, linear)
        if row.calibration is not None and row.scales != "tensor":
            smoothing = [
                np.ones(linear.in_features) if part.smoothing is None else part.smoothing
                for part in parts
            ]
            one = self._one(smoothing, "pre-quant scale", linear)
            whole["prequant_scaling_factor"] = one.astype(numpy_dtype(self._dtype))
        if first.step is not None:
            steps = [np.array([part.step], np.float32) for part in parts]
            whole["activation_scaling_factor"] = self._one(steps, "activation scale", linear)
        return whole

    def _regroup(self, whole: Tensors, parts: list[SourceLinear], linear: LinearShape) -> None:
        """Repeats scales of larger groups, and sorts inputs that are out of order."""
        scales = whole["weights_scaling_factor"]
        times = linear.in_features // self._recipe.quantize.group_size // scales.shape[1]
        if self._stored.zero_points:
            zeros = np.zeros(scales.shape, np.int8)
            offsets = [part.offsets for part in parts]
            if all(one is not None for one in offsets):
                zeros = np.concatenate([one for one in offsets if one is not None])
            # As TensorRT-LLM's layer takes them, transposed, in the model's dtype.
            loaded = as_loaded(scales, self._dtype) * zeros
            whole["zero"] = np.repeat(loaded, times, axis=1).astype(numpy_dtype(self._dtype))
        whole["weights_scaling_factor"] = np.repeat(scales, times, axis=1)
        if not self._stored.ordered:
            return
        ordinary = np.arange(linear.in_features) // (linear.in_features // scales.shape[1])
        groups = [ordinary if part.groups is None else part.groups for part in parts]
        one = self._one(groups, "order of inputs", linear)
        if (np.bincount(one, minlength=scales.shape[1]) * scales.shape[1] != one.size).any():
            raise SourceError(
                f"the groups of {linear.name} are not of one size",
                where=self._place,
                why="g_idx gives some groups more inputs than others",
                fix="Use the directory that the quantizing tool wrote, unchanged",
            )
        order = np.argsort(one, kind="stable").astype(np.int32)
        whole["input_order"], whole["weight"] = order, whole["weight"][:, order]

    def _one(self, values: Sequence[Array], what: str, linear: LinearShape) -> Array:
        """The value that all parts share."""
        first, *others = values
        if any(not np.array_equal(first, other) for other in others):
            names = ", ".join(name.rpartition(".")[2] for name, _ in linear.source)
            raise UnsupportedError(
                f"{names} have each a {what} of their own",
                where=self._place,
                why=f"They are one linear in the checkpoint ({linear.name}), which has one {what}; "
                "making one of them would change codes",
                fix="Quantize the model again with one for all of them, or "
                f"{_ORIGINAL[0].lower()}{_ORIGINAL[1:]}",
            )
        return first

    def _check_scales(self, parts: Sequence[SourceLinear], names: Sequence[str]) -> None:
        """Refuses scales of 16 bits that another 16 bits cannot hold; wider ones are rounded once.

        TensorRT-LLM casts group scales to the model's dtype when it loads them.
        """
        if not ALGOS[self._stored.quant_algo].group_sizes:
            return
        for part, name in zip(parts, names, strict=True):
            own = part.scales.dtype
            if own.itemsize > 2 or own == numpy_dtype(self._dtype):
                continue
            exact = part.scales.astype(np.float32)
            changed = int((as_loaded(part.scales, self._dtype) != exact).sum())
            if changed:
                raise UnsupportedError(
                    f"{changed} scales of {name} are {own.name}, which {self._dtype} cannot hold",
                    where=self._recipe.place("model.dtype"),
                    why="Scales are loaded in the model's dtype, and would be rounded",
                    fix=f"Set model.dtype to {own.name}",
                )
