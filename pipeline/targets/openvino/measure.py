"""Measures a compiled engine: as it is served, and its graph with every logit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.reading.json_text import read_json
from pipeline.targets.base import KvCache
from pipeline.targets.openvino.memory import in_blocks, kv_bytes_per_token
from pipeline.triton.sources import load_module, model_sources
from pipeline.triton.tensors import ENGINE

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.evaluation.scoring import Scorer

METHOD = (
    "the compiled engine: its perplexity from the log probabilities that the pipeline which is "
    "served gives to the tokens of a prompt (OpenVINO GenAI, paged attention, in chunks), "
    "divergence, agreement and tasks from all logits of its graph with the same properties"
)


@dataclass(frozen=True)
class MeasuredHere:
    """Measures engines on this machine's processor.

    Attributes:
        material: What decides the measurement besides engine, checkpoint and windows.
        longest_window: Tokens of the longest window that the engine takes.
        kv_precision: Says the element type of its keys and values, as OpenVINO calls it. An engine
            knows its own, so that an estimate alone asks for it.
        method: What is run.
        rounded_to: None: the engine has the checkpoint's own weights.
        in_float32: False: OpenVINO has them as they are stored.
        gives_logits: True: it computes them here.
    """

    material: Mapping[str, Any]
    longest_window: int
    kv_precision: Callable[[], str]
    method: str = METHOD
    rounded_to: int | None = None
    in_float32: bool = False
    gives_logits: bool = True

    def kv_cache(self, facts: ModelFacts) -> KvCache:
        """Returns what the graph keeps of a token, and the room of :func:`_settings`."""
        per_token = kv_bytes_per_token(facts, self.kv_precision())
        return KvCache(per_token, in_blocks(self.longest_window + 1) * per_token)

    @contextmanager
    def logits(self, engine: Path) -> Iterator[Scorer]:
        """Opens the engine's graph, in the properties that it is served with.

        It is closed behind the block, whoever still has the scorer.

        Raises:
            StageError: OpenVINO cannot open it.
        """
        with _explained(engine):
            opened = [_open(engine)]
        try:
            yield lambda ids: _infer(opened[0], ids)
        finally:
            opened.clear()

    def losses(
        self,
        engine: Path,
        checkpoint: Path,  # noqa: ARG002  the engine itself is here
        windows: Sequence[Sequence[int]],
        workspace: Path,  # noqa: ARG002
        progress: Progress,
    ) -> list[NDArray[np.float32]]:
        """Sends every window as a prompt to the pipeline that is served; see :class:`Prompts`.

        Raises:
            StageError: OpenVINO cannot open the engine, or does not give back what was asked.
        """
        with _explained(engine):
            pipeline = Prompts(engine)
        total = sum(len(window) - 1 for window in windows)
        with progress.task(f"scoring {total:,} tokens on the served engine", total) as task:
            found = []
            for window, losses in zip(windows, pipeline.score(windows), strict=True):
                found.append(losses)
                task.advance(len(window) - 1)
        return found


class Prompts:
    """The pipeline of the Triton model ``tensorrt_llm``, made by its own files.

    Args:
        engine: An engine directory.
    """

    def __init__(self, engine: Path) -> None:
        self._settings = _settings(engine)
        self._engine = _front("engine").Engine(self._settings)

    def score(self, windows: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
        """Yields the negative log-likelihoods of each window's tokens but the first.

        As many windows run together as the KV cache has room for.

        Raises:
            StageError: The pipeline echoes something else than the window.
        """
        done = 0
        while done < len(windows):
            count = self._that_fit(windows[done:])
            yield from self._together(windows[done : done + count])
            done += count

    def _that_fit(self, windows: Sequence[Sequence[int]]) -> int:
        """How many of the next windows the KV cache holds, with the token behind each."""
        blocks, left = _front("settings").blocks, self._settings.num_kv_blocks
        for count, window in enumerate(windows):
            left -= blocks(len(window) + 1)
            if left < 0 or count == self._settings.max_batch_size:
                return max(count, 1)
        return len(windows)

    def _together(self, windows: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
        import numpy as np

        request, sampling, engine = _front("request"), _front("sampling"), self._engine
        handles = []
        for number, window in enumerate(windows):
            ids = np.array(window, np.int64)
            wanted = request.GenerationRequest(ids, max_new_tokens=1, log_probs=True)
            config = sampling.generation_config(engine.genai, wanted)
            config.echo = True
            handles.append(engine.pipeline.add_request(number, engine.tensor(ids[None]), config))
        echoes: list[list[tuple[int, float]]] = [[] for _ in windows]
        while engine.pipeline.has_non_finished_requests():
            engine.pipeline.step()
            for echo, handle in zip(echoes, handles, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        ids, log_probs = output.generated_ids, output.generated_log_probs
                        echo.extend(zip(ids, log_probs, strict=True))
        for window, echo in zip(windows, echoes, strict=True):
            if [token for token, _ in echo[:-1]] != list(window):
                raise StageError(
                    f"the engine echoed {len(echo)} tokens that are not the {len(window)} of its "
                    "prompt and one more"
                )
            # Nothing comes before the first token; what stands there is no probability.
            yield -np.array([log_prob for _, log_prob in echo[1:-1]], np.float32)


def _open(engine: Path) -> Any:
    """An inference request, with which the compiled graph goes."""
    import openvino as ov

    compiled = ov.Core().compile_model(engine / "openvino_model.xml", "CPU", _properties(engine))
    return compiled.create_infer_request()


def _infer(request: Any, ids: torch.Tensor) -> torch.Tensor:
    """All logits of texts from their beginnings."""
    import numpy as np
    import torch

    batch, length = ids.shape
    request.reset_state()
    request.infer(
        {
            "input_ids": ids.cpu().numpy(),
            "attention_mask": np.ones((batch, length), np.int64),
            "position_ids": np.tile(np.arange(length, dtype=np.int64), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
    )
    return torch.from_numpy(request.get_tensor("logits").data.copy())


def _properties(engine: Path) -> dict[str, str]:
    """What the served pipeline opens the engine with on this processor."""
    import openvino as ov

    settings = _settings(engine)
    exact = _front("exactness").exact_properties(ov) if settings.int8_products else {}
    return {**settings.properties, **exact}


def _settings(engine: Path) -> Any:
    """The front's own settings, with room in the KV cache for one sequence of ``max_seq_len``.

    The blocks of one window are not reused for another, whose tokens would have no likelihoods.
    """
    build = read_json(engine / "config.json")["build_config"]
    settings = _front("settings")
    room = settings.blocks(int(build["max_seq_len"])) * settings.TOKENS_PER_BLOCK
    parameters = {
        "gpt_model_path": str(engine.resolve()),
        "max_tokens_in_paged_kv_cache": str(room),
        "enable_kv_cache_reuse": "false",
    }
    return settings.read_settings(engine.parent, parameters)


def _front(module: str) -> Any:
    return load_module(model_sources(), ENGINE, module)


@contextmanager
def _explained(engine: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise StageError(
            "OpenVINO cannot open the engine to measure it",
            where=str(engine),
            why=str(error).strip().partition("\n")[0],
            fix="Run 'trtllm-pipeline doctor', which says what is installed here",
        ) from error
