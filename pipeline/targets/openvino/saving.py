"""Writes a graph whose matrices were left out, one matrix at a time.

The bytes are those of ``ov.save_model`` of the graph with all values in memory. OpenVINO writes
the graph; the weights are written here as its ``ConstantWriter`` does
(core/xml_util/src/constant_writer.cpp): constants in the order of the graph, without gaps, and
equal ones once.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import openvino as ov

from pipeline.errors import CompileError
from pipeline.targets.openvino.constants import Bytes, LeftOut, bytes_of

_CONSTANT = re.compile(
    rb'(<layer id="\d+" name="([^"]*)" type="Const" [^>]*>\s*'
    rb'<data [^>]* offset=")\d+(" size=")(\d+)'
)
# Of a constant, written and compared at a time.
_PIECE = 1 << 24
# By which constants of one size are told apart before they are compared.
_BEGINNING = 256


def save(
    model: ov.Model,
    path: Path,
    left_out: LeftOut,
    *,
    release: Callable[[], None] = lambda: None,
    written: Callable[[], None] = lambda: None,
) -> None:
    """Writes the ``.xml`` and the ``.bin`` of a graph.

    Args:
        model: The graph.
        path: Of the ``.xml``.
        left_out: Made the constants whose values are still to be read.
        release: Lets go of what reading them has left in memory; called between pieces.
        written: Called after each of them.

    Raises:
        CompileError: The disk is full, or OpenVINO writes graphs in another form.
    """
    try:
        text = _graph(model, path.parent)
        with path.with_suffix(".bin").open("w+b") as file:
            text = _with_weights(text, model, left_out, _Weights(file, release), written)
        path.write_bytes(text)
    except (RuntimeError, OSError) as error:
        why = (
            error.strerror if isinstance(error, OSError) else str(error).strip().partition("\n")[0]
        )
        raise CompileError(
            "the engine cannot be saved",
            where=str(path),
            why=why,
            fix="Make sure that the disk has room for a file as large as the checkpoint",
        ) from error


def _graph(model: ov.Model, folder: Path) -> bytes:
    """The graph as OpenVINO writes it, places of weights apart."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        xml = Path(scratch, "graph.xml")
        # A link of our own, since OpenVINO removes the file of weights where it fails.
        xml.with_suffix(".bin").symlink_to(os.devnull)
        ov.save_model(model, xml, compress_to_fp16=False)
        return xml.read_bytes()


def _with_weights(
    text: bytes,
    model: ov.Model,
    left_out: LeftOut,
    weights: _Weights,
    written: Callable[[], None],
) -> bytes:
    """Writes all constants in the order of a graph's text; returns it with their places."""
    values = left_out.values()
    constants = {
        node.get_friendly_name(): node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant"
    }

    def placed(match: re.Match[bytes]) -> bytes:
        before, name, between, size = match.groups()
        key = name.decode()
        if key not in constants:
            raise _other_form(f"It has a constant {key}")
        node, read = constants.pop(key), values.get(key)
        parts = [node.data] if read is None else read()
        place = weights.place([bytes_of(part) for part in parts], int(size))
        if read is not None:
            written()
        return b"".join((before, str(place).encode(), between, size))

    text = _CONSTANT.sub(placed, text)
    if constants:
        raise _other_form(f"It lacks the constant {min(constants)}")
    return text


def _other_form(why: str) -> CompileError:
    return CompileError(
        "OpenVINO's text of the graph is not understood",
        why=why,
        fix="Install the version of OpenVINO in constraints.txt",
    )


class _Weights:
    """The file of all constants, which grows at its end.

    Args:
        file: Open for reading and writing, and empty.
        release: Called after each piece.
    """

    def __init__(self, file: BinaryIO, release: Callable[[], None]) -> None:
        self._file, self._release = file, release
        self._end = self._since = 0
        self._places: dict[tuple[int, bytes], list[int]] = {}

    def place(self, parts: Sequence[Bytes], size: int) -> int:
        """Writes a constant, unless the file has its bytes already; returns where they begin.

        Args:
            parts: Its bytes.
            size: How many they are.
        """
        if sum(part.size for part in parts) != size:
            raise _other_form(f"A constant of {sum(part.size for part in parts)} bytes has {size}")
        known = self._places.setdefault((size, parts[0][:_BEGINNING].tobytes()), [])
        for place in known:
            if self._holds(place, parts):
                return place
        place = self._end
        known.append(place)
        self._file.seek(place)
        for piece in self._pieces(parts):
            self._file.write(piece)
        self._end += size
        return place

    def _holds(self, place: int, parts: Sequence[Bytes]) -> bool:
        self._file.seek(place)
        return all(self._file.read(len(piece)) == piece for piece in self._pieces(parts))

    def _pieces(self, parts: Sequence[Bytes]) -> Iterator[memoryview]:
        for part in parts:
            for start in range(0, part.size, _PIECE):
                piece = part[start : start + _PIECE].data
                yield piece
                self._since += len(piece)
                if self._since >= _PIECE:
                    self._since = 0
                    self._release()
