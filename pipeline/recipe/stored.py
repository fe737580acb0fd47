"""What a model on this machine says of its quantization need not be written into a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError
from pipeline.models.config_json import read_config
from pipeline.models.quantized import StoredQuantization, read_quantization


def with_stored_format(data: Mapping[str, Any]) -> dict[str, Any]:
    """Adds ``quantize.stored``, ``format`` and ``group_size`` of a model that is quantized already.

    What the recipe says itself stays; where it contradicts the model, pre-flight refuses it.

    Args:
        data: The values of a recipe, paths resolved; nothing is validated.

    Raises:
        SourceError: The recipe leaves the format to a model that cannot be read.
        UnsupportedError: The model's quantization is one that is not taken.
    """
    whole, model, section = dict(data), data.get("model"), data.get("quantize")
    source = model.get("source") if isinstance(model, dict) else None
    if not isinstance(source, str) or not isinstance(section, dict | None):
        return whole
    try:
        stored = _stored(Path(source))
    except SourceError:
        if section and "format" in section:
            return whole
        raise
    if stored is None:
        return whole
    found: dict[str, object] = {"stored": stored.method, "format": stored.row.name}
    if stored.group_size is not None:
        found["group_size"] = stored.group_size
    return {**whole, "quantize": {**found, **(section or {})}}


def _stored(directory: Path) -> StoredQuantization | None:
    try:
        there = (directory / "config.json").is_file()
    except (OSError, ValueError):
        return None
    if not there:
        return None
    config = read_config(directory, SourceError, "A Hugging Face checkpoint has one")
    return read_quantization(config, directory, str(directory / "config.json"))
