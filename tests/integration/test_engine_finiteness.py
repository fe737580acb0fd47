"""An engine whose scores are NaN, as its own OpenVINO computes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino as ov
import pytest

from model_repo.tensorrt_llm.engine import Engine
from model_repo.tensorrt_llm.request import RequestError, Sampling

from .engine_front_support import Front, front, settings, write_engine

SOUND = [317, 262, 288]
"""A prompt without the token whose embedding is damaged."""

DAMAGED = 827
NAN = np.full(256, np.nan, np.float32)

SAMPLED = (
    Sampling(greedy=False, seed=3),
    Sampling(greedy=False, top_p=0.7, seed=3),
    Sampling(greedy=False, top_k=10, top_p=0.9, temperature=0.7, repetition_penalty=1.3),
)


def damage(engine_dir: Path, name: str, at: int) -> None:
    """Writes NaN over a row of one of the engine's weights.

    Args:
        engine_dir: The engine.
        name: The end of the constant's name in OpenVINO's file, which says where it lies.
        at: Which row.
    """
    graph = ElementTree.parse(engine_dir / "openvino_model.xml").getroot()
    (data,) = (
        layer.find("data")
        for layer in graph.iter("layer")
        if layer.get("type") == "Const" and str(layer.get("name")).endswith(name)
    )
    assert data is not None
    assert data.get("element_type") == "f32"
    with (engine_dir / "openvino_model.bin").open("r+b") as weights:
        weights.seek(int(str(data.get("offset"))) + at * NAN.nbytes)
        weights.write(NAN.tobytes())


@pytest.fixture(scope="module")
def damaged(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that computes no numbers where the token :data:`DAMAGED` is in a prompt."""
    engine_dir = write_engine(demo_model, tmp_path_factory.mktemp("damaged"))
    damage(engine_dir, "vocab_embedding.weight", DAMAGED)
    return engine_dir


@pytest.fixture(scope="module")
def made(damaged: Path) -> Iterator[Front]:
    with front(damaged, max_batch_size=4) as made:
        yield made


def test_openvino_says_nothing_of_scores_that_are_nan(damaged: Path) -> None:
    """What the check rests on; a version that behaves otherwise needs another one."""
    engine = Engine(settings(damaged))
    found = []
    for number, sampling in enumerate([{}, {"do_sample": True, "top_k": 50}, {"do_sample": True}]):
        config = engine.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = 3, True
        config.set_eos_token_id(0)
        for key, value in sampling.items():
            setattr(config, key, value)
        tensor = ov.Tensor(np.array([[*SOUND, DAMAGED]], np.int64))
        handle = engine.pipeline.add_request(number, tensor, config)
        while engine.pipeline.has_non_finished_requests():
            engine.pipeline.step()
        (output,) = handle.read_all()
        found.append((output.generated_ids, output.generated_log_probs))
    assert found[0][0] == [0, 0, 0]
    assert np.allclose(found[1][1], -np.log(50), atol=1e-6)
    assert np.allclose(found[2][1], -np.log(1024), atol=1e-6)


@pytest.mark.parametrize("sampling", [Sampling(), *SAMPLED], ids=str)
def test_a_request_without_numbers_is_told_and_its_neighbours_go_on(
    made: Front, sampling: Sampling
) -> None:
    alone = made.run(SOUND, 40)
    neighbour = made.submit(SOUND, 40)[1]
    for tokens in (1, 9):
        broken = made.submit([*SOUND, DAMAGED], tokens, sampling=sampling)[1]
        assert "for this request the engine computes no numbers (NaN)" in broken.failure()
        assert broken.error is not None
        assert broken.error.code == "INTERNAL"
        assert broken.ids == []
    assert neighbour.result() == alone
    assert made.run(SOUND, 40) == alone
    made.idle()
    assert made.broken == []


def test_one_that_is_told_leaves_room_when_all_places_are_taken(made: Front) -> None:
    neighbours = [made.submit(SOUND, 60)[1] for _ in range(6)]
    broken = [made.submit([*SOUND, DAMAGED], 5)[1] for _ in range(6)]
    assert all("no numbers" in one.failure() for one in broken)
    assert len({tuple(one.result()) for one in neighbours}) == 1
    made.idle()


def test_an_engine_without_any_numbers_does_not_come_up(demo_model: Path, tmp_path: Path) -> None:
    damage(write_engine(demo_model, tmp_path), "lm_head.weight", 5)
    with pytest.raises(RequestError, match="computes no numbers"):
        Engine(settings(tmp_path)).warm_up(settings(tmp_path))


class Spoilt:
    """A pipeline that answers every request as one does whose scores are all NaN.

    Args:
        damaged: A damaged engine's pipeline.
        tensor: As the engine's.
    """

    def __init__(self, damaged: Any, tensor: Any) -> None:
        self._damaged, self._tensor = damaged, tensor

    def add_request(self, number: int, _prompt: Any, config: Any) -> Any:
        return self._damaged.add_request(
            number, self._tensor(np.array([[*SOUND, DAMAGED]], np.int64)), config
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._damaged, name)


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED[0]], ids=str)
def test_an_engine_that_loses_its_numbers_is_broken(damaged: Path, sampling: Sampling) -> None:
    limits = settings(damaged, max_batch_size=2)
    engine = Engine(limits)
    made = Front(engine, limits, Spoilt(engine.pipeline, engine.tensor))
    failed = [made.submit(SOUND, 5, sampling=sampling)[1] for _ in range(3)]
    assert all("stopped working" in one.failure() for one in failed)
    made.loop.close()
    (error,) = made.broken
    assert str(error).startswith("the engine computes no numbers (NaN): its weights are damaged")


def test_the_token_that_nan_looks_like_may_be_a_word(demo_model: Path, tmp_path: Path) -> None:
    """Asked once more where a text begins with it and at every fourth in a row, not otherwise."""
    engine_dir = write_engine(demo_model, tmp_path)
    limits = settings(engine_dir, max_batch_size=2)
    engine = Engine(limits)
    asked: list[int] = []

    class Wordy:
        """Generates the token 0 for a while, from sound scores."""

        def add_request(self, number: int, prompt: Any, config: Any) -> Any:
            if config.max_new_tokens == 1:
                asked.append(prompt.shape[1])
                return engine.pipeline.add_request(number, prompt, config)
            return Zeros(engine.pipeline.add_request(number, prompt, config))

        def __getattr__(self, name: str) -> Any:
            return getattr(engine.pipeline, name)

    class Zeros:
        def __init__(self, handle: Any) -> None:
            self._handle = handle

        def read(self) -> Any:
            outputs = self._handle.read()
            for output in outputs.values():
                output.generated_ids = [0] * len(output.generated_ids)
            return outputs

        def __getattr__(self, name: str) -> Any:
            return getattr(self._handle, name)

    made = Front(engine, limits, Wordy())
    assert made.run(SOUND, 9) == [0] * 9
    made.loop.close()
    assert made.broken == []
    assert asked == [3, 3 + 3, 3 + 7]
