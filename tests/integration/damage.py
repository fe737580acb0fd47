"""Damage to the files of a checkpoint or of a model, as faults in a chain really do it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]
WEIGHTS = "rank0.safetensors"
# Of a row, of a group and of a whole matrix.
SCALES = ("per_channel_scale", "weights_scaling_factor")
LINEARS = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")


def of_layer(layer: int) -> str:
    """Where the names of a layer's tensors begin."""
    return f"transformer.layers.{layer}."


def change(folder: Path, harm: Callable[[Tensors], None], file: str = WEIGHTS) -> None:
    """Writes a rank's tensors again, as ``harm`` leaves them."""
    path = folder / file
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    harm(tensors)
    path.unlink()
    save_file(tensors, path)


def config_of(folder: Path) -> dict[str, Any]:
    """The checkpoint's configuration."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def scale(tensors: Tensors, beginning: str, factor: float) -> None:
    """Multiplies the scales, or in floating point the weights, of the linears that are named."""
    names = [n for n in tensors if n.startswith(beginning) and n.endswith(SCALES)] or [
        n for n in tensors if n.startswith(beginning) and n.endswith(".weight") and "norm" not in n
    ]
    assert names
    for name in names:
        tensors[name] = (tensors[name] * factor).astype(tensors[name].dtype)


def exchange(tensors: Tensors, one: str, other: str, ends: tuple[str, ...] = ("",)) -> None:
    """Exchanges what two beginnings of names stand for, as far as it ends like that."""
    names = [name for name in tensors if name.startswith(one) and name.endswith(ends)]
    assert names
    for name in names:
        twin = other + name.removeprefix(one)
        assert tensors[name].shape == tensors[twin].shape
        tensors[name], tensors[twin] = tensors[twin], tensors[name]


def louder_layer(folder: Path, layer: int) -> None:
    """All scales of a layer times 1.5."""
    change(folder, lambda tensors: scale(tensors, of_layer(layer), 1.5))


def louder_linear(folder: Path, layer: int) -> None:
    """The scales of one linear of a layer times 1.5, another in each layer."""
    linear = f"{of_layer(layer)}{LINEARS[layer % len(LINEARS)]}"
    change(folder, lambda tensors: scale(tensors, linear, 1.5))


def exchanged_fc_and_gate(folder: Path, layer: int) -> None:
    """The two matrices that an MLP begins with, with their scales."""
    mlp = f"{of_layer(layer)}mlp."
    change(folder, lambda tensors: exchange(tensors, f"{mlp}fc.", f"{mlp}gate."))


def exchanged_layers(folder: Path, layer: int) -> None:
    """A layer and the one behind it; that of the last is the first."""
    other = (layer + 1) % config_of(folder)["num_hidden_layers"]
    change(folder, lambda tensors: exchange(tensors, of_layer(layer), of_layer(other)))


def exchanged_scales(folder: Path, layer: int) -> None:
    """The scales of a layer and of the one behind it, with the weights where they were."""
    other = (layer + 1) % config_of(folder)["num_hidden_layers"]

    def harm(tensors: Tensors) -> None:
        exchange(tensors, of_layer(layer), of_layer(other), SCALES)

    change(folder, harm)


def another_rope_base(folder: Path, number: int) -> None:
    """50 times the base, a 50th, and 10 times: 10000 is taken for 500000, and the other way."""
    config = config_of(folder)
    config["rotary_base"] *= (50.0, 1 / 50.0, 10.0)[number % 3]
    path = folder / "config.json"
    path.unlink()
    path.write_text(json.dumps(config), encoding="utf-8")


def silent_norm(folder: Path, layer: int) -> None:
    """A norm's weights are nothing: in front of attention, or of the MLP."""
    name = f"{of_layer(layer)}{('input', 'post')[layer % 2]}_layernorm.weight"

    def harm(tensors: Tensors) -> None:
        tensors[name][:] = 0

    change(folder, harm)


def moved_head(folder: Path, layer: int) -> None:
    """The first query head and the last take each other's place; the output matrix stays."""
    config = config_of(folder)
    heads, size = config["num_attention_heads"], config["head_size"]

    def harm(tensors: Tensors) -> None:
        for name in tensors:
            if not name.startswith(f"{of_layer(layer)}attention.qkv."):
                continue
            tensor = tensors[name]
            rows = (heads + 2 * config["num_key_value_heads"]) * size
            # Two rows of INT4 share a byte; scales of columns have no rows.
            step = rows // tensor.shape[0] if tensor.ndim and tensor.shape[0] else 0
            if not tensor.ndim or step * tensor.shape[0] != rows or step > 2:
                continue
            head = size // step
            first, last = slice(0, head), slice((heads - 1) * head, heads * head)
            tensor[first], tensor[last] = tensor[last].copy(), tensor[first].copy()

    change(folder, harm)


def other_nibbles(folder: Path, layer: int) -> None:
    """The two codes of every byte of a layer's INT4 weights in the other order."""

    def harm(tensors: Tensors) -> None:
        for linear in LINEARS:
            codes = tensors[f"{of_layer(layer)}{linear}.weight"].view(np.uint8)
            codes[:] = (codes << 4) | (codes >> 4)

    change(folder, harm)


def lost_prequant(folder: Path, layer: int) -> None:
    """A layer's weights were smoothed, and its inputs are not: one of the two was forgotten."""

    def harm(tensors: Tensors) -> None:
        ends = ("prequant_scaling_factor", "smoother")
        names = [n for n in tensors if n.startswith(of_layer(layer)) and n.endswith(ends)]
        assert names
        for name in names:
            tensors[name][:] = 1

    change(folder, harm)


def shifted_head(folder: Path, number: int) -> None:
    """The rows of the language-model head are some rows further, as with another vocabulary."""

    def harm(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = np.roll(tensors["lm_head.weight"], 1 + number, axis=0)

    change(folder, harm)


def exchanged_shards(folder: Path, layer: int) -> None:
    """Two ranks have each other's part of what an MLP of a layer ends with."""
    beginning = f"{of_layer(layer)}mlp.proj."
    parts = [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]
    for rank in range(2):
        other = parts[1 - rank]

        def harm(tensors: Tensors, other: Tensors = other) -> None:
            names = [name for name in tensors if name.startswith(beginning)]
            assert names
            for name in names:
                # What both ranks have is the same; the reader refuses it where it is not.
                tensors[name] = other[name]

        change(folder, harm, f"rank{rank}.safetensors")


def another_training(folder: Path, seed: int) -> None:
    """Every weight is a twentieth larger or smaller: of a model that was trained further."""
    generator = np.random.default_rng(seed)
    ends = ("per_channel_scale", "weights_scaling_factor", ".weight")

    def harm(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if tensor.dtype.kind == "f" and name.endswith(ends) and "norm" not in name:
                noise = generator.normal(1.0, 0.05, tensor.shape)
                tensors[name] = (tensor * noise).astype(tensor.dtype)

    change(folder, harm)


OF_CHECKPOINTS: dict[str, Callable[[Path, int], None]] = {
    "scales of a layer x1.5": louder_layer,
    "scales of a linear x1.5": louder_linear,
    "fc and gate exchanged": exchanged_fc_and_gate,
    "another rope base": another_rope_base,
    "two layers exchanged": exchanged_layers,
    "scales of two layers exchanged": exchanged_scales,
    "a norm of zeros": silent_norm,
    "two heads exchanged": moved_head,
    "smoothing lost": lost_prequant,
    "head shifted": shifted_head,
    "nibbles exchanged": other_nibbles,
}
ONLY_OF: dict[str, tuple[str, ...]] = {
    "nibbles exchanged": ("int4_awq",),
    # The factors that AWQ chooses for a model without outliers are near 1.
    "smoothing lost": ("int8_sq",),
}
"""What only checkpoints of some formats can have, or suffer from."""


def other_ids(model: Path, copy: Path, seed: int) -> None:
    """Copies a model and gives its tokenizer's tokens each other's ids, all but the special ones.

    The words, their number and how text is cut into them stay; nothing but what they mean to the
    model does not.
    """
    copy.mkdir()
    for path in model.iterdir():
        if path.name != "tokenizer.json":
            shutil.copyfile(path, copy / path.name)
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in content["added_tokens"]}
    vocabulary = content["model"]["vocab"]
    tokens = [token for token in vocabulary if token not in special]
    places = [vocabulary[token] for token in tokens]
    content["model"]["vocab"] |= dict(zip(tokens, _moved(places, seed), strict=True))
    (copy / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def _moved(places: list[int], seed: int) -> Iterable[int]:
    """One place further, the other way round, or anywhere."""
    if seed == 0:
        return [*places[1:], places[0]]
    if seed == 1:
        return places[::-1]
    return [int(place) for place in np.random.default_rng(seed).permutation(places)]
