"""Reads the ``config.json`` of a model or checkpoint, whose values may be any JSON."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.reading.json_text import read_json

# Tensor dimensions are 32-bit integers in TensorRT, and JSON numbers have no limit at all.
LARGEST_SIZE = (1 << 31) - 1


def read_config(
    directory: Path, error: type[StageError], contents: str, fix: str | None = None
) -> dict[str, Any]:
    """Reads ``directory/config.json``, which must hold a JSON object.

    Args:
        directory: The directory.
        error: What is raised when there is no JSON object to read.
        contents: What such a directory holds, for the message.
        fix: What to do when there is no such file.
    """
    path = directory / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError as cause:
        raise error(
            "there is no config.json", where=str(directory), why=contents, fix=fix
        ) from cause
    except (OSError, ValueError, RecursionError) as cause:
        raise error("config.json cannot be read", where=str(path), why=str(cause)) from cause
    if not isinstance(config, dict):
        raise error("config.json is not a JSON object", where=str(path))
    return config


class ConfigValues:
    """The values of one JSON object, each checked when it is asked for.

    Args:
        values: The object.
        where: The file, for error messages.
        error: What is raised, naming the key and its value, when a value is not as asked for.
        prefix: The key of the object itself and a dot, for an object within another.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, error: type[StageError], prefix: str = ""
    ) -> None:
        self.values = values
        self._where, self._error, self._prefix = where, error, prefix

    def positive_int(self, key: str) -> int:
        """Returns a size, from 1 to :data:`LARGEST_SIZE`; neither true nor 256.0 is one."""
        value = self._required(key)
        if type(value) is not int or not 0 < value <= LARGEST_SIZE:
            raise self.wrong(key, "a positive integer")
        return value

    def optional_positive_int(self, key: str) -> int | None:
        """Returns a size, or None for null."""
        return None if self._required(key) is None else self.positive_int(key)

    def index(self, key: str) -> int:
        """Returns an integer from 0."""
        value = self._required(key)
        if type(value) is not int or value < 0:
            raise self.wrong(key, "an integer from 0")
        return value

    def positive_float(self, key: str) -> float:
        """Returns a finite number above 0."""
        value = self._required(key)
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:
            number = math.inf
        if not 0 < number < math.inf:
            raise self.wrong(key, "a finite positive number")
        return number

    def flag(self, key: str) -> bool:
        """Returns true or false; null is false."""
        value = self._required(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return bool(value)

    def names(self, key: str) -> list[str]:
        """Returns a list of strings."""
        value = self._required(key)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.wrong(key, "a list of names")
        return value

    def section(self, key: str) -> ConfigValues:
        """Returns an object within this one; null or no key is an empty one."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return ConfigValues(value or {}, self._where, self._error, f"{self._prefix}{key}.")

    def wrong(self, key: str, wanted: str) -> StageError:
        """Makes the error that says what a key should be; the caller raises it."""
        return self._error(
            f"{self._prefix}{key} is {reprlib.repr(self.values.get(key))}, not {wanted}",
            where=self._where,
            fix="Use config.json as the tool that saved the model wrote it, unchanged",
        )

    def _required(self, key: str) -> Any:
        if key not in self.values:
            raise self._error(
                f"{self._prefix}{key} is missing",
                where=self._where,
                fix="Use config.json as the tool that saved the model wrote it, unchanged",
            )
        return self.values[key]
