"""A quantized folder as a whole: its tensors by name, and which of its linears are quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.reader import TensorFile
from pipeline.checkpoint.sources import awq, bitsandbytes, compressed, gptq, modelopt
from pipeline.checkpoint.sources.linear import SourceLinear
from pipeline.errors import SourceError
from pipeline.models.facts import ModelFacts
from pipeline.models.quantized import Method, StoredQuantization
from pipeline.source.quantized import marker
from pipeline.source.snapshot import facts_of, weight_files

Reader = Callable[[StoredQuantization, Callable[[str], Array | None]], SourceLinear]
READERS: dict[Method, Reader] = {
    "gptq": gptq.read,
    "awq": awq.read,
    "compressed-tensors": compressed.read,
    "bitsandbytes": bitsandbytes.read,
    "modelopt": modelopt.read,
}


class QuantizedFolder:
    """Reads the linears of a snapshot that :func:`pipeline.source.snapshot.check_snapshot` passed.

    Args:
        directory: The snapshot.

    Attributes:
        facts: The model's, with its quantization.

    Raises:
        SourceError: The model is not quantized, or a file is damaged.
        UnsupportedError: Its quantization is not taken.
    """

    def __init__(self, directory: Path) -> None:
        self.facts: ModelFacts = facts_of(directory)
        if self.facts.quantized is None:
            raise SourceError("the model is not quantized", where=str(directory))
        self.stored: StoredQuantization = self.facts.quantized
        self._directory = directory
        self._files: dict[str, TensorFile] = {}
        for path in weight_files(directory):
            file = TensorFile(path)
            self._files |= dict.fromkeys(file.tensors, file)

    def tensor(self, name: str) -> Array | None:
        """Returns a view of a tensor; None where there is none of that name."""
        file = self._files.get(name)
        return None if file is None else file.read(name)

    def release(self) -> None:
        """Lets go of the pages of what was read; views stay valid."""
        for file in set(self._files.values()):
            file.release()

    def is_quantized(self, name: str) -> bool:
        """Says whether a linear is, by its name without ``.weight``."""
        return f"{name}.{marker(self.stored)}" in self._files

    def linear(self, name: str) -> SourceLinear:
        """Reads a quantized linear.

        Args:
            name: Such as ``model.layers.0.self_attn.q_proj``.

        Raises:
            SourceError: Its tensors contradict each other.
        """
        try:
            return READERS[self.stored.method](
                self.stored, lambda end: self.tensor(f"{name}.{end}")
            )
        except SourceError as error:
            raise SourceError(
                error.what, where=f"{self._directory} ({name})", why=error.why, fix=error.fix
            ) from error

    def weight(self, name: str) -> Array:
        """Returns W of any linear, [N, K]: float32 where it is quantized, else as stored.

        ModelOpt's pre-quant scales are multiplied in, so that it is made for inputs as they are.
        """
        if not self.is_quantized(name):
            plain = self.tensor(f"{name}.weight")
            assert plain is not None
            return plain
        linear = self.linear(name)
        weight = linear.weight()
        return weight if linear.smoothing is None else weight * linear.smoothing.astype("float32")
