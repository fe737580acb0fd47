"""Rules of the C++ backend's stand-in that no request to the demo's repository can show.

Numbers are worked out by hand; texts and rules are those recorded from upstream's sources. The
engine is a script here: each step's scores are given.
"""

from __future__ import annotations

import json
import math
import queue
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.targets.tensorrt.serve.tokenizer_info import FILE_NAME, tokenizer_info
from tests.conftest import DEMO_MODEL, PROJECT
from tests.doubles.tensorrtllm_backend.backend import decoder
from tests.doubles.tensorrtllm_backend.backend.adapters import Adapters
from tests.doubles.tensorrtllm_backend.backend.errors import TllmError
from tests.doubles.tensorrtllm_backend.backend.executor import Executor, Response
from tests.doubles.tensorrtllm_backend.backend.request import Request, Sampling
from tests.doubles.tensorrtllm_backend.backend.settings import LoraSettings, Settings, read_settings

pytestmark = pytest.mark.strict

# Log probabilities of four tokens: 1/2, 1/4, 1/8, 1/8.
SCORES = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
SETTINGS = Settings(
    vocab_size=4,
    max_input_len=15,
    max_seq_len=16,
    max_batch_size=2,
    max_beam_width=1,
    max_blocks=8,
    tokens_per_block=4,
    gather_context_logits=False,
    normalize_log_probs=False,
    exclude_input=True,
    guaranteed_no_evict=True,
    chunked_context=True,
    block_reuse=True,
    max_queue_size=0,
    decoupled=True,
    cancellation_check_period=0.1,
    stats_check_period=0.1,
)
PLAIN = Request((1, 2, 3), 4, streaming=False, sampling=Sampling(), exclude_input=True)


def choose(sampling: Sampling, draw: float = 0.0, **more: Any) -> decoder.Choice:
    class Fixed:
        def random(self) -> float:
            return draw

    given = {"tokens": [1, 2, 3], "prompt_length": 3, "end_id": None, **more}
    return decoder.choose(SCORES, sampling, Fixed(), **given)  # type: ignore[arg-type]


class TestChoice:
    """samplingTopKKernels.cu and samplingTopPKernels.cu."""

    def test_the_normalized_log_prob_is_that_among_the_top_k(self) -> None:
        # Of 1/2 and 1/4 the second one has a third.
        choice = choose(Sampling(top_k=2), draw=0.9)
        assert choice.token == 1
        assert choice.log_prob == pytest.approx(math.log(1 / 4), abs=1e-6)
        assert choice.normalized == pytest.approx(math.log(1 / 3), abs=1e-6)

    def test_of_the_most_likely_token_it_is_exactly_0(self) -> None:
        choice = choose(Sampling())
        assert (choice.token, choice.normalized) == (0, 0.0)
        assert choice.log_prob == pytest.approx(math.log(1 / 2), abs=1e-6)

    def test_top_p_alone_does_not_normalize(self) -> None:
        choice = choose(Sampling(top_p=0.75), draw=0.99)
        assert choice.token == 1
        assert choice.normalized == choice.log_prob == pytest.approx(math.log(1 / 4), abs=1e-6)

    @pytest.mark.parametrize(
        ("given", "top_k", "top_p", "temperature"),
        [
            (Sampling(), 1, 1.0, 1.0),
            (Sampling(temperature=0.7), 1, 1.0, 0.7),
            (Sampling(top_k=5000), 1024, 1.0, 1.0),
            (Sampling(top_k=0, top_p=0.5), 0, 0.5, 1.0),
            (Sampling(top_k=50, temperature=0.0), 1, 1.0, 1.0),
            (Sampling(top_k=50, top_p=0.5, temperature=0.0), 1, 1.0, 1.0),
            # Nothing limits it to the most likely token: it is drawn from all.
            (Sampling(top_p=0.5, temperature=0.0), 0, 1.0, 1.0),
        ],
    )
    def test_what_is_not_given(
        self, given: Sampling, top_k: int, top_p: float, temperature: float
    ) -> None:
        assert decoder.effective(given) == decoder.Effective(top_k, top_p, temperature)

    def test_penalties_count_the_prompt(self) -> None:
        scores = np.array([2.0, -2.0, 4.0, 1.0], np.float32)

        def penalized(**given: Any) -> list[float]:
            found = decoder.penalized(
                *(scores, Sampling(**given), given.get("temperature", 1.0)),
                tokens=[1, 2, 2, 0],
                prompt_length=3,
                bias=None,
            )
            return [round(float(x), 4) for x in found]

        assert penalized(repetition_penalty=2.0) == [1.0, -4.0, 2.0, 1.0]
        assert penalized(presence_penalty=0.5) == [1.5, -2.5, 3.5, 1.0]
        assert penalized(frequency_penalty=0.5) == [1.5, -2.5, 3.0, 1.0]
        assert penalized(frequency_penalty=0.5, prompt_ignore_length=2) == [1.5, -2.0, 3.5, 1.0]
        assert penalized(temperature=0.5, presence_penalty=1.0) == [3.0, -5.0, 7.0, 2.0]

    def test_no_repeated_pairs(self) -> None:
        # 3 0 has been, so after another 3 it may not come.
        choice = choose(Sampling(no_repeat_ngram_size=2), tokens=[3, 0, 3])
        assert choice.token == 1


class Script:
    """A sequence whose most likely tokens are given; the fourth one goes on for ever."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens, self._place = tokens, 0
        self.released = False

    def forward(self, tokens: Sequence[int]) -> Any:
        place = self._place
        self._place += 1
        wanted = self._tokens[place] if place < len(self._tokens) else 3
        scores = np.zeros((len(tokens), 4), np.float32)
        scores[-1, wanted] = 9
        return scores

    def release(self) -> None:
        self.released = True


class Bench:
    """An executor and what it says; ``gate`` holds each step up while it is cleared."""

    def __init__(self, settings: Settings, *scripts: Sequence[int]) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.sequences: list[Script] = []
        self._scripts = list(scripts)
        self._answers: queue.Queue[Response] = queue.Queue()
        self.stats: list[Any] = []
        self._stepped = threading.Event()
        self.executor = Executor(settings, self._sequence, self._answers.put, self._iterated)

    def _sequence(self, _task_id: int | None) -> Any:
        script = Script(self._scripts.pop(0) if self._scripts else ())
        self.sequences.append(script)
        return script

    def _iterated(self, stats: Any) -> None:
        self.stats.append(stats)
        self._stepped.set()
        assert self.gate.wait(60)

    def until_stepped(self) -> None:
        """Waits for the first iteration."""
        assert self._stepped.wait(60)

    def answers(self, request: Request) -> list[Response]:
        """Every response to one request."""
        (request_id,) = self.executor.enqueue([request])
        return self.until_final(request_id)

    def until_final(self, request_id: int) -> list[Response]:
        found = []
        while True:
            answer = self._answers.get(timeout=60)
            if answer.request_id == request_id:
                found.append(answer)
                if answer.result is None or answer.result.is_final:
                    return found

    def error(self, request: Request) -> str:
        (answer,) = self.answers(request)
        assert answer.error is not None, answer
        return answer.error


@pytest.fixture
def bench() -> Any:
    benches: list[Bench] = []

    def make(*scripts: Sequence[int], **settings: Any) -> Bench:
        benches.append(Bench(replace(SETTINGS, **settings), *scripts))
        return benches[-1]

    yield make
    for one in benches:
        one.gate.set()
        one.executor.shut_down()


Make = Callable[..., Bench]


class TestExecutor:
    """executorImpl.cpp and llmRequest.cpp."""

    def test_log_probs_of_the_parameter(self, bench: Make) -> None:
        asked = replace(PLAIN, return_log_probs=True)
        (plain,) = bench(normalize_log_probs=False).answers(asked)
        (normalized,) = bench(normalize_log_probs=True).answers(asked)
        assert plain.result
        assert normalized.result
        # exp(9) among three ones.
        each = -math.log(1 + 3 * math.exp(-9))
        assert plain.result.log_probs == pytest.approx([each] * 4, rel=1e-5)
        assert normalized.result.log_probs == (0.0,) * 4
        assert plain.result.cum_log_prob == pytest.approx(4 * each, rel=1e-5)
        assert normalized.result.cum_log_prob == plain.result.cum_log_prob

    def test_a_full_queue(self, bench: Make) -> None:
        made = bench(max_queue_size=2, max_batch_size=1)
        made.gate.clear()
        made.executor.enqueue([PLAIN])
        made.until_stepped()
        # One is active, which does not count; two wait.
        made.executor.enqueue([PLAIN, PLAIN])
        with pytest.raises(
            TllmError, match=r"^Maximum queue size of 2 has been reached, please try again later \("
        ):
            made.executor.enqueue([PLAIN])

    def test_context_logits_of_an_engine_that_gathers_them(self, bench: Make) -> None:
        asked = replace(PLAIN, return_context_logits=True)
        (answer,) = bench(gather_context_logits=True).answers(asked)
        assert answer.result
        assert answer.result.context_logits is not None
        assert answer.result.context_logits.shape == (3, 4)
        assert "gather_context_logits (" in bench().error(asked)

    def test_generation_logits_are_never_enabled(self, bench: Make) -> None:
        asked = replace(PLAIN, return_generation_logits=True)
        assert "must be enabled in ExecutorConfig (" in bench(gather_context_logits=True).error(
            asked
        )

    def test_a_stream_that_might_be_evicted_without_chunks(self, bench: Make) -> None:
        stream = replace(PLAIN, streaming=True, max_new_tokens=6)
        tight = {"guaranteed_no_evict": False, "chunked_context": False, "max_input_len": 7}
        assert (
            "[TensorRT-LLM][ERROR] Assertion failed: Request sequence length is potentially "
            "greater than max input length. This cannot be run unless streaming is disabled, "
            "context chunking is enabled or the GUARANTEED_NO_EVICT scheduling policy is used ("
        ) in bench(**tight).error(stream)
        for relief in ("guaranteed_no_evict", "chunked_context"):
            assert bench(**{**tight, relief: True}).answers(stream)[-1].result
        assert bench(**tight).answers(replace(stream, streaming=False))[-1].result
        assert bench(**tight).answers(replace(stream, max_new_tokens=5))[-1].result

    def test_new_tokens_are_cut_to_the_sequence_length(self, bench: Make) -> None:
        (answer,) = bench().answers(replace(PLAIN, max_new_tokens=99))
        assert answer.result
        assert len(answer.result.output_tokens) == 16 - 3

    def test_an_error_while_stepping_ends_every_active_request(self, bench: Make) -> None:
        made = bench(max_batch_size=3)
        made.gate.clear()
        (first,) = made.executor.enqueue([replace(PLAIN, max_new_tokens=12)])
        made.until_stepped()
        bias = np.zeros(3, np.float32)
        wrong, waiting = made.executor.enqueue(
            [replace(PLAIN, embedding_bias=bias), replace(PLAIN, max_new_tokens=2)]
        )
        made.gate.set()
        texts = {made.until_final(number)[-1].error for number in (first, wrong, waiting)}
        (text,) = texts
        assert text
        assert text.startswith(
            "Encountered an error in forwardAsync function: [TensorRT-LLM][ERROR] Assertion "
            "failed: The embedding bias shape is not as expected. Expected last dimension to be "
            "same as vocab size: 4. ("
        )
        assert all(sequence.released for sequence in made.sequences)
        assert made.answers(PLAIN)[-1].result

    def test_a_request_that_waits_is_cancelled_when_its_turn_comes(self, bench: Make) -> None:
        made = bench(max_batch_size=1)
        made.gate.clear()
        first, second = made.executor.enqueue([PLAIN, replace(PLAIN, max_new_tokens=9)])
        made.executor.cancel(second)
        made.gate.set()
        whole = made.until_final(first)[-1].result
        cut = made.until_final(second)[-1].result
        assert whole
        assert cut
        assert len(whole.output_tokens) == 4
        # The iteration that takes it up also steps it.
        assert len(cut.output_tokens) == 1

    def test_a_step_gives_what_was_guessed_rightly(self, bench: Make) -> None:
        # After 0 1 2 3 the text says 0 1 2 1: of each guess what comes is taken, and what differs.
        made = bench((0, 1, 2, 1, 3), lookahead=(2, 3, 2))
        prompt = replace(PLAIN, input_tokens=(0, 1, 2, 3), max_new_tokens=5, streaming=True)
        answers = made.answers(replace(prompt, return_log_probs=True))
        steps = [answer.result.output_tokens for answer in answers if answer.result]
        assert steps == [(0,), (1, 2, 1), (3,)]
        assert answers[-1].result
        assert answers[-1].result.log_probs == (0.0,) * 5

    def test_a_cache_that_is_full_makes_an_active_request_wait(self, bench: Make) -> None:
        # 16 tokens are 4 blocks of 4; there are 5.
        made = bench(max_blocks=5)
        long = replace(PLAIN, max_new_tokens=13)
        first, second = made.executor.enqueue([long, long])
        made.until_final(first)
        made.until_final(second)
        waiting = [stats.active - stats.scheduled for stats in made.stats]
        assert waiting == [1] * 13 + [0] * 13


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    engine = tmp_path / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True)
    config = {
        "pretrained_config": {"vocab_size": 4, "mapping": {"world_size": 1}},
        "build_config": {
            "max_input_len": 100,
            "max_seq_len": 200,
            "max_batch_size": 8,
            "max_num_tokens": 150,
            "gather_context_logits": False,
            "plugin_config": {
                "tokens_per_block": 32,
                "use_paged_context_fmha": True,
                "context_fmha": True,
                "remove_input_padding": True,
            },
        },
    }
    (engine / "config.json").write_text(json.dumps(config))
    info = {"encoded_vocab": ["a", "b", "c", "d"], "tokenizer_str": "{}", "stop_token_ids": [3]}
    (tmp_path / "info.json").write_text(json.dumps(info))
    (tmp_path / "damaged.json").write_text("{")
    return tmp_path


def model_config(without: str = "", **parameters: str) -> dict[str, Any]:
    """config.pbtxt as Triton gives it to a model."""
    given = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": "/models/tensorrt_llm/1/engine",
        "tokenizer_dir": "",
        "xgrammar_tokenizer_info_path": "",
        "guided_decoding_backend": "",
        **parameters,
    }
    given.pop(without, None)
    return {
        "parameters": {name: {"string_value": value} for name, value in given.items()},
        "model_transaction_policy": {"decoupled": True},
    }


class TestStart:
    """model_instance_state.cc and trtGptModel.h."""

    @pytest.mark.parametrize(
        "name", ["tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend"]
    )
    def test_three_parameters_must_be_there(self, repository: Path, name: str) -> None:
        with pytest.raises(TllmError, match=f"^Cannot find parameter with name: {name}$"):
            read_settings(model_config(without=name), repository)

    @pytest.mark.parametrize(
        ("parameters", "reason"),
        [
            (
                {"gpt_model_type": "inflight"},
                "Invalid gpt_model_type. Must be v1/inflight_batching/inflight_fused_batching.",
            ),
            (
                {"gpt_model_path": "/models/elsewhere"},
                "Both encoder and decoder model paths are empty",
            ),
            (
                {
                    "guided_decoding_backend": "xgrammar",
                    "xgrammar_tokenizer_info_path": "/models/no.json",
                },
                "Xgrammar's tokenizer info path at /models/no.json does not exist.",
            ),
            (
                {
                    "guided_decoding_backend": "outlines",
                    "xgrammar_tokenizer_info_path": "/models/info.json",
                },
                "Guided decoding is currently supported with 'xgrammar' backend.",
            ),
            (
                {
                    "guided_decoding_backend": "xgrammar",
                    "xgrammar_tokenizer_info_path": "/models/damaged.json",
                },
                "[json.exception",
            ),
            ({"kv_cache_free_gpu_mem_fraction": "1.0"}, "freeGpuMemoryFraction < 1.F"),
            ({"kv_cache_free_gpu_mem_fraction": "0"}, "freeGpuMemoryFraction > 0.F"),
            ({"max_tokens_in_paged_kv_cache": "0"}, "maxTokens > 0"),
        ],
    )
    def test_a_parameter_that_keeps_the_model_from_loading(
        self, repository: Path, parameters: dict[str, str], reason: str
    ) -> None:
        with pytest.raises(TllmError) as caught:
            read_settings(model_config(**parameters), repository)
        assert reason in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "wanted"),
        [
            ({}, None),
            ({"encoded_vocab": None}, "array"),
            ({"encoded_vocab": [1, 2]}, "string"),
            ({"tokenizer_str": None}, "string"),
            ({"stop_token_ids": 2}, "array"),
            ({"stop_token_ids": ["</s>"]}, "number"),
        ],
    )
    def test_the_file_of_guided_decoding_has_three_things(
        self, repository: Path, change: dict[str, Any], wanted: str | None
    ) -> None:
        """The product's own file is taken, and none that lacks a thing."""
        served = repository / "tokenizer"
        served.mkdir()
        (served / "tokenizer.json").write_bytes((DEMO_MODEL / "tokenizer.json").read_bytes())
        (served / "generation_config.json").write_text('{"eos_token_id": [2]}')
        written = tokenizer_info(served, vocab_size=1024, where="a recipe")
        path = repository / "tensorrt_llm" / "1" / FILE_NAME
        path.write_text(json.dumps(json.loads(written) | change))
        config = model_config(
            guided_decoding_backend="xgrammar",
            xgrammar_tokenizer_info_path=f"/models/tensorrt_llm/1/{FILE_NAME}",
        )
        if wanted is None:
            assert read_settings(config, repository).guided_decoder
            return
        with pytest.raises(TllmError, match=rf"type_error\.302\] type must be {wanted}$"):
            read_settings(config, repository)

    @pytest.mark.parametrize(
        ("window", "ngram", "verification"),
        [("4", "3", None), ("4", "three", "4"), ("0", "3", "4"), ("2", "1", "0"), ("1", "1", "1")],
    )
    def test_lookahead_without_sizes_that_fit(
        self, repository: Path, window: str, ngram: str, verification: str | None
    ) -> None:
        sizes = {"window_size": window, "ngram_size": ngram, "verification_set_size": verification}
        given = {f"lookahead_{name}": value for name, value in sizes.items() if value is not None}
        with pytest.raises(TllmError, match="lookahead parameters are not specified"):
            read_settings(model_config(decoding_mode="lookahead", **given), repository)
        assert read_settings(model_config(**given), repository).lookahead is None

    def test_sizes_of_features(self, repository: Path) -> None:
        given = {
            "decoding_mode": "lookahead",
            "lookahead_window_size": "4",
            "lookahead_ngram_size": "3",
            "lookahead_verification_set_size": "2",
            "kv_cache_host_memory_bytes": "8589934592",
            "cuda_graph_cache_size": "64",
            "guided_decoding_backend": "xgrammar",
            "xgrammar_tokenizer_info_path": "/models/info.json",
        }
        settings = read_settings(model_config(**given, cuda_graph_mode="true"), repository)
        assert settings.lookahead == (4, 3, 2)
        assert settings.host_cache_bytes == 8 * 2**30
        assert settings.cuda_graphs == 64
        assert settings.tokenizer_info
        assert settings.tokenizer_info.stop_token_ids == (3,)
        # Above 0 without the mode, the number has no effect; one that cannot be read is 0.
        given |= {"kv_cache_host_memory_bytes": "8GiB"}
        settings = read_settings(model_config(**given), repository)
        assert (settings.cuda_graphs, settings.host_cache_bytes) == (0, 0)

    def test_any_other_is_taken_for_its_default(self, repository: Path) -> None:
        odd = {"normalize_log_probs": "${normalize}", "max_beam_width": "", "stray": "1"}
        settings = read_settings(model_config(**odd), repository)
        assert settings.normalize_log_probs
        assert settings.max_beam_width == 1
        assert not settings.chunked_context
        assert not settings.exclude_input

    def test_the_longest_prompt(self, repository: Path) -> None:
        chunked = model_config(enable_chunked_context="true")
        assert read_settings(chunked, repository).max_input_len == 199
        assert read_settings(model_config(), repository).max_input_len == 150
        path = repository / "tensorrt_llm/1/engine/config.json"
        path.write_text(path.read_text().replace('"context_fmha": true', '"context_fmha": false'))
        assert read_settings(model_config(), repository).max_input_len == 100

    def test_the_queue_is_the_batchers(self, repository: Path) -> None:
        config = model_config(max_queue_size="7")
        assert read_settings(config, repository).max_queue_size == 0
        config["dynamic_batching"] = {"default_queue_policy": {"max_queue_size": 5}}
        assert read_settings(config, repository).max_queue_size == 5

    def test_several_ranks_need_as_many_processes(self, repository: Path) -> None:
        path = repository / "tensorrt_llm/1/engine/config.json"
        path.write_text(path.read_text().replace('"world_size": 1', '"world_size": 2'))
        with pytest.raises(TllmError, match=r"MPI worldSize is expected to be equal to tp\*pp\*cp"):
            read_settings(model_config(), repository)


# 4 features in and out of attn_v, one layer, a rank of up to 2: A and B have 16 values.
LORA = LoraSettings(
    shapes={"attn_v": (4, 4)},
    layers=1,
    max_rank=2,
    max_adapter_size=64,
    host_cache_bytes=32,
    prefetch_dir=None,
)


class TestAdapters:
    """peftCacheManager.cpp and loraUtils.cpp."""

    @staticmethod
    def save(folder: Path, width: int = 16, row: tuple[int, ...] = (3, 0, 2)) -> None:
        folder.mkdir(parents=True)
        np.save(folder / "model.lora_weights.npy", np.arange(width, dtype=np.float16)[None, None])
        np.save(folder / "model.lora_config.npy", np.array([[row]], np.int32))

    def test_what_is_loaded_at_the_start(self, tmp_path: Path) -> None:
        self.save(tmp_path / "12")
        self.save(tmp_path / "german")
        ((row,),) = [Adapters(replace(LORA, prefetch_dir=tmp_path), list)[12]]
        assert (row.module, row.layer) == ("attn_v", 0)
        assert row.a.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert row.b.tolist() == [[8, 9], [10, 11], [12, 13], [14, 15]]

    def test_a_folder_without_its_files(self, tmp_path: Path) -> None:
        (tmp_path / "1").mkdir()
        with pytest.raises(TllmError, match=r"npy file .*1/model\.lora_weights\.npy"):
            Adapters(replace(LORA, prefetch_dir=tmp_path), list)

    @pytest.mark.parametrize(
        ("width", "row", "reason"),
        [
            (16, (3, 1, 2), "Expected layerId to be in the range"),
            (16, (1, 0, 2), "lora module attn_q not enabled for this model"),
            (15, (3, 0, 2), "lora_weights has to few values for attn_v"),
            (24, (3, 0, 3), r"Invalid low_rank \(3\)"),
        ],
    )
    def test_an_adapter_that_does_not_fit(
        self, tmp_path: Path, width: int, row: tuple[int, ...], reason: str
    ) -> None:
        self.save(tmp_path / "1", width, row)
        with pytest.raises(TllmError, match=reason):
            Adapters(replace(LORA, prefetch_dir=tmp_path), list)

    def test_a_cache_that_does_not_hold_one_adapter(self) -> None:
        # 16 values of 2 bytes; a page has the 8 of one rank.
        with pytest.raises(TllmError, match="to hold 1 max sized LoRA 1 < 2"):
            Adapters(replace(LORA, host_cache_bytes=31), list)
        Adapters(LORA, list)


def test_the_table_of_rules_names_every_test_and_no_other() -> None:
    readme = (PROJECT / "tests/doubles/tensorrtllm_backend/README.md").read_text()
    rows = readme.partition("## Rules")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(test_\w+)`", rows))
    e2e = PROJECT / "tests/e2e"
    files = (Path(__file__), e2e / "test_strict_rules.py", e2e / "test_strict_features.py")
    tests = {n for f in files for n in re.findall(r"^ *def (test_\w+)", f.read_text(), re.M)}
    assert named == tests - {"test_the_table_of_rules_names_every_test_and_no_other"}
