"""A deterministic text model behind the fake server, whole or broken in one chosen way.

It keeps the promises that the conformance checks test: slots, in-flight batching, stop words, end
tokens, whole characters, clear refusals. Each name in ``BREAKS`` breaks one of them.
"""

from __future__ import annotations

import codecs
import json
import random
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from pipeline.triton.contract import MODELS
from pipeline.verify.check_leaving import FREED_S
from tests.unit.client.fake_triton import (
    Asked,
    FakeTriton,
    add_output,
    empty_final,
    pb,
    piece,
    refusal,
)

WORDS = "the old man went home and saw a small dog near its red boat before noon while rain fell"
PARTS = [b"\xf0\x9f", b"\x98\x80", b"\xc3", b"\xa9"]
VOCABULARY = [*(f" {word}".encode() for word in WORDS.split()), *PARTS]
END_ID = len(VOCABULARY)
BEGIN = "<begin>"
BEGIN_ID, OTHER_SPECIAL_ID = END_ID + 1, END_ID + 2
SPECIAL = {b"<other>": OTHER_SPECIAL_ID, BEGIN.encode(): BEGIN_ID}
MAX_SEQ_LEN = 512
STEP_S = 0.0005

# NVIDIA's client sends it with a stop request, inflight_batcher_llm_client.py.
CLIENTS_PARAMETERS = {"Streaming"}
# Where the two candidates stand that a model decides between, by the defect: their log
# probabilities, and from which token on.
CANDIDATES = {
    "parts_at_near_ties": (-0.75, -0.80),
    "parts_far_off": (-0.75, -3.0),
    "parts_where_certain": (-0.02, -0.05),
}
PARTS_FROM = 5
OLD_NAMES = {"random_seed": "seed", "min_length": "min_tokens"}

# What it cannot do, by the name on a text model or on the engine; empty and false ones are fine.
NOT_SERVED = (
    "bad_words", "bad_words_list", "return_context_logits", "return_generation_logits",
    "lora_task_id", "embedding_bias_words", "embedding_bias_weights", "embedding_bias",
    "guided_decoding_guide_type", "guided_decoding_guide",
)  # fmt: skip
# Values that it refuses.
RANGES = {
    "temperature": (0, 1e9), "top_k": (0, 1e9), "top_p": (0, 1), "repetition_penalty": (0.01, 1e9),
    "length_penalty": (0, 1e9), "min_tokens": (0, MAX_SEQ_LEN), "beam_width": (1, 1),
    "presence_penalty": (-1e9, 1e9), "frequency_penalty": (-1e9, 1e9), "max_tokens": (1, 1e10),
    "runtime_top_k": (0, 1e9), "runtime_top_p": (0, 1), "len_penalty": (0, 1e9),
    "request_output_len": (1, 1e10), "input_ids": (0, 1e9),
}  # fmt: skip
# Broken ones of what only the thorough checks ask, with the same use as BREAKS.
THOROUGH_BREAKS = (
    "answers_a_megabyte",
    "fails_at_zero",
    "forgets_the_other_type",
    "ignores_min_tokens",
    "one_seed",
    "other_log_probs",
    "refuses_what_is_offered",
    "runs_on",
    "slow_reuse",
    "takes_a_token_more",
    "takes_any_bytes",
    "streams_other_ids",
    "vague_when_full",
)

BREAKS = (
    "accepts_bad_input",
    "accumulates_undeclared",
    "batch_dependent",
    "batch_mixes_texts",
    "begins_twice",
    "broken_characters",
    "cancel_keeps_slot",
    "crashes_on_bad_input",
    "cuts_in_silence",
    "ends_after_end_token",
    "ensemble_differs",
    "ignores_add_special_tokens",
    "ignores_end_token",
    "ignores_misspelt_inputs",
    "ignores_stop_requests",
    "ignores_stop_words",
    "keeps_stop_word",
    "loses_first_space",
    "loses_spaces",
    "max_tokens_plus_one",
    "metrics_out_of_order",
    "metrics_with_the_last_response_only",
    "mixes_streams",
    "nested_texts",
    "never_streams",
    "no_end_without_end_token",
    "no_log_probs",
    "no_token_counts",
    "no_batch_index",
    "not_ready",
    "one_at_a_time",
    "other_text",
    "other_tokens",
    "parts_at_near_ties",
    "parts_far_off",
    "parts_where_certain",
    "positive_log_probs",
    "random",
    "refuses_an_empty_prompt",
    "refuses_its_own_end_id",
    "refuses_nvidias_parameters",
    "refuses_stop_requests",
    "repeats_log_probs",
    "restarts_at_length",
    "stop_words_within_tokens",
    "takes_a_number_for_a_flag",
    "tensor_missing",
    "tensor_type",
    "unary_differs",
    "unnoticed_end",
    "vague_about_old_names",
    "vague_refusals",
    "wrong_log_prob_count",
    "wrong_log_prob_sum",
)


def token_ids(text: bytes) -> list[int]:
    """The ids of a text, longest tokens first; other bytes have none."""
    ids, place = [], 0
    by_length = sorted(range(len(VOCABULARY)), key=lambda i: -len(VOCABULARY[i]))
    while place < len(text):
        special = next((name for name in SPECIAL if text.startswith(name, place)), None)
        if special:
            ids.append(SPECIAL[special])
            place += len(special)
            continue
        match = next((i for i in by_length if text.startswith(VOCABULARY[i], place)), None)
        if match is None:
            place += 1
            continue
        ids.append(match)
        place += len(VOCABULARY[match])
    return ids


def text_of(ids: Iterable[int]) -> str:
    """The text of ids."""
    return b"".join(VOCABULARY[token] for token in ids).decode("utf-8", "replace")


def score_of(*run: Any) -> float:
    """The log probability of a token, one number for each place of each run."""
    return round(-random.Random("/".join(map(str, run))).uniform(0.01, 1.5), 4)


def continuation(prompt: str, seed: int | None) -> Iterator[int]:
    """Token ids after a prompt, endless; now and then a character of two tokens."""
    chooser = random.Random(f"{prompt}/{seed}")
    while True:
        draw = chooser.random()
        if draw < 0.1:
            yield from (len(VOCABULARY) - 4, len(VOCABULARY) - 3)
        elif draw < 0.2:
            yield from (len(VOCABULARY) - 2, len(VOCABULARY) - 1)
        elif draw < 0.23:
            yield END_ID
        else:
            yield chooser.randrange(len(VOCABULARY) - 4)


class FakeModel:
    """Answers requests; give :meth:`answer` and :meth:`infer` to a :class:`FakeTriton`.

    Args:
        broken: One of ``BREAKS``, or None.
        slots: Requests generated at once.
        ascii_only: Writes no character of several bytes.
        most_requests: Requests that are taken at once, running and waiting.
    """

    def __init__(
        self,
        broken: str | None = None,
        *,
        slots: int = 4,
        ascii_only: bool = False,
        most_requests: int = 256,
    ) -> None:
        assert broken is None or broken in (*BREAKS, *THOROUGH_BREAKS)
        self.broken, self.ascii_only = broken, ascii_only
        self._slots = threading.BoundedSemaphore(1 if broken == "one_at_a_time" else slots)
        self._count_lock = threading.Lock()
        self._most_requests = most_requests
        self._taken = 0
        self._running = 0
        self._served = 0
        self._long: set[bytes] = set()
        self._stopped: set[str] = set()
        self._prompts: dict[tuple[int, ...], str] = {}

    @property
    def active(self) -> int:
        """Requests of the text models that are generated now."""
        return self._running

    @property
    def served(self) -> int:
        """Requests of the text models that came so far."""
        return self._served

    def serve(self) -> FakeTriton:
        """A server with this model."""
        server = FakeTriton(self.answer, infer=self.infer, workers=80)
        server.ready = self.broken != "not_ready"
        server.parameters |= {
            "accumulate_tokens": "false",
            "add_special_tokens": "auto",
            "chat_template_tokens": json.dumps({"bos_token": BEGIN}),
            "cancellation_check_period_ms": "5",
            "include_stop_str_in_output": "false",
            "max_concurrent_requests": str(self._most_requests),
            "normalize_log_probs": "false",
        }
        if self.broken == "unary_differs":
            answer_once(server)
        if self.broken in ("tensor_missing", "tensor_type"):
            model = server.models["tensorrt_llm_bls"]
            first, *others = model.inputs
            kept = () if self.broken == "tensor_missing" else (replace(first, data_type="INT8"),)
            server.models[model.name] = replace(model, inputs=(*kept, *others))
        return server

    def infer(self, asked: Asked) -> Any:
        """``preprocessing``, ``postprocessing``, and text models that answer once."""
        if asked.model == "postprocessing":
            return self._texts(asked)
        if asked.model != "preprocessing":
            (response,) = self._generate(asked, None)
            if self.broken == "unary_differs":
                return piece("something else").infer_response
            return response.infer_response
        response = pb.ModelInferResponse()
        ids = self._prompt_ids(asked.one("QUERY"), asked.one("ADD_SPECIAL_TOKENS"))
        ids = ids[1:] if self.broken == "other_tokens" else ids
        self._prompts[tuple(ids)] = asked.one("QUERY").decode()
        add_output(response, "INPUT_ID", "INT32", [1, len(ids)], ids)
        for name, value in (
            ("REQUEST_INPUT_LEN", len(ids)),
            ("REQUEST_OUTPUT_LEN", asked.one("REQUEST_OUTPUT_LEN")),
            ("OUT_END_ID", END_ID),
            ("OUT_PAD_ID", END_ID),
        ):
            add_output(response, name, "INT32", [1, 1], [value])
        return response

    def _prompt_ids(self, text: bytes, added: bool | None) -> list[int]:
        """The ids of a prompt, which begin with the begin token once where it is not asked for."""
        ids = token_ids(text)
        once = ids[:1] != [BEGIN_ID] or self.broken == "begins_twice"
        return [BEGIN_ID, *ids] if (once if added is None else added) else ids

    def _texts(self, asked: Asked) -> Any:
        response = pb.ModelInferResponse()
        texts = []
        for row in asked.rows():
            text = text_of(token for token in row.values["TOKENS_BATCH"] if token < END_ID)
            texts.append((text.lstrip() if self.broken == "other_text" else text).encode())
        shape = [len(texts), 1] if self.broken == "nested_texts" else [len(texts)]
        add_output(response, "OUTPUT", "BYTES", shape, texts)
        return response

    def answer(self, asked: Asked, context: Any) -> Iterator[Any]:
        """One streamed request."""
        unknown = asked.parameters - CLIENTS_PARAMETERS
        if self.broken == "refuses_nvidias_parameters":
            unknown = asked.parameters
        if asked.one("stop") and asked.datatypes["stop"] == "BOOL":
            if self.broken == "refuses_stop_requests":
                yield refusal(f"invalid parameter {unknown}")
                return
            if self.broken != "ignores_stop_requests":
                self._stopped.add(asked.id)
            yield empty_final()
            return
        if unknown and self.broken != "ignores_misspelt_inputs":
            name = unknown.pop()
            hint = OLD_NAMES.get(name, "") if self.broken != "vague_about_old_names" else ""
            yield refusal(f"invalid parameter {name}: there is no such input {hint}")
            return
        if asked.model == "tensorrt_llm":
            yield from self._engine(asked)
            return
        problem = self._problem(asked)
        if problem and self.broken != "accepts_bad_input":
            if self.broken == "crashes_on_bad_input":
                context.abort(2, "the process died")
            yield refusal("something went wrong" if self.broken == "vague_refusals" else problem)
            return
        with self._count_lock:
            self._served += 1
            full = self._taken + len(list(asked.rows())) > self._most_requests
            self._taken += not full
        if full:
            vague = self.broken == "vague_when_full"
            yield refusal("no" if vague else "serves no more requests, please try again later")
            return
        try:
            yield from self._in_turn(asked, context)
        finally:
            with self._count_lock:
                self._taken -= 1

    def _in_turn(self, asked: Asked, context: Any) -> Iterator[Any]:
        while not self._slots.acquire(timeout=0.01):
            if not context.is_active():
                return
        with self._count_lock:
            self._running += 1
        cancelled, ended = True, False
        try:
            rows = list(asked.rows())
            for number, row in enumerate(rows if len(rows) > 1 else ()):
                for response in self._generate(row, context):
                    if self.broken != "no_batch_index":
                        index = 0 if self.broken == "batch_mixes_texts" else number
                        add_output(response.infer_response, "batch_index", "INT32", [1, 1], [index])
                    response.infer_response.parameters["triton_final_response"].bool_param = False
                    yield response
            if len(rows) > 1:
                yield empty_final()
            else:
                yield from self._generate(asked, context)
            cancelled = not context.is_active()
            ended = True
        finally:
            if self.broken == "runs_on" and not ended:
                # gRPC drops a generator whose client left while it sent something.
                time.sleep(3 * FREED_S)
            with self._count_lock:
                self._running -= 1
            if cancelled and self.broken == "cancel_keeps_slot":
                self._wait_for_the_others()
            self._slots.release()

    def _wait_for_the_others(self) -> None:
        # Not a time of its own: how long the others take depends on the machine.
        give_up_at = time.monotonic() + 30
        while self._running and time.monotonic() < give_up_at:
            time.sleep(STEP_S)

    def _wrong_input(self, asked: Asked) -> str | None:
        """What Triton, or this model, says to an input as such."""
        known = {t.name: t.data_type.removeprefix("TYPE_") for t in MODELS[asked.model].inputs}
        for name, kind in asked.datatypes.items():
            if name not in known:
                return f"unexpected inference input '{name}' for model '{asked.model}'"
            lax = self.broken == "forgets_the_other_type" or (
                self.broken == "takes_a_number_for_a_flag" and name == "add_special_tokens"
            )
            wanted = known[name].replace("STRING", "BYTES")
            if kind != wanted and lax:
                asked.values.pop(name)
            elif kind != wanted:
                return f"inference input '{name}' data-type is '{kind}', expected '{wanted}'"
        for name, (low, high) in RANGES.items():
            values = asked.values.get(name, ())
            if not all(low <= value <= high for value in values):
                if self.broken == "fails_at_zero" and name == "max_tokens" and values == (0,):
                    return f"division by zero {self._served}"
                return f"{name} must be between {low} and {high}, not {values}"
        return next((f"{n} is not supported" for n in NOT_SERVED if asked.one(n)), None)

    def _problem(self, asked: Asked) -> str | None:
        rows = len(list(asked.rows()))
        limits = {"text_input": rows, "max_tokens": rows}
        if "max_tokens" not in asked.values:
            return "missing required input(s) ['max_tokens']"
        if problem := self._wrong_input(asked):
            return problem
        if self.broken == "refuses_what_is_offered" and len(asked.values) > 6:
            return "something is not supported"
        if any(len(asked.values[name]) != count for name, count in limits.items()):
            return "unexpected shape for input. Expected [-1,1]"
        text, tokens = asked.one("text_input"), asked.one("max_tokens")
        try:
            text.decode(errors="replace" if self.broken == "takes_any_bytes" else "strict")
        except UnicodeDecodeError:
            return "text_input is not valid UTF-8"
        if len(text) > 100_000 and self.broken == "answers_a_megabyte":
            return f"{text[:5000].decode()} is too long"
        if not text and self.broken == "refuses_an_empty_prompt":
            return "text_input is empty"
        if asked.one("end_id") == END_ID and self.broken == "refuses_its_own_end_id":
            return f"end_id must be below {END_ID}"
        if asked.one("min_tokens", 0) > tokens:
            return "min_tokens is above max_tokens"
        if len(text) > 4000:
            return f"the engine was compiled for at most {MAX_SEQ_LEN} tokens"
        needed = len(self._prompt_ids(text, asked.one("add_special_tokens"))) + tokens
        most = MAX_SEQ_LEN + (self.broken == "takes_a_token_more" and asked.model == "ensemble")
        if needed > most and self.broken != "cuts_in_silence":
            return f"the engine was compiled for at most {MAX_SEQ_LEN} tokens"
        return None

    def _ids_after(self, prompt: str, seed: Any, end_id: int, least: int = 0) -> Iterator[int]:
        """Token ids after a prompt, to the end token if that is to end it."""
        for token in continuation(prompt, seed):
            if token == end_id:
                if least > 0 and self.broken != "ignores_min_tokens":
                    continue
                return
            least -= 1
            if token == END_ID:
                continue
            yield 0 if self.ascii_only and token >= len(VOCABULARY) - 4 else token

    def _tokens(self, asked: Asked) -> Iterator[tuple[int, float]]:
        """Token ids and their log probabilities."""
        # The likeliest tokens are drawn by no seed.
        likeliest = asked.one("top_k") == 1 or 0 < asked.one("top_p", 1) < 1e-3
        seed = None if likeliest else asked.one("seed")
        if self.broken == "random" or (self.broken == "ensemble_differs" and "ens" in asked.model):
            seed = self._served
        if self.broken == "batch_dependent" and self._running > 1:
            seed = 99
        if self.broken == "restarts_at_length":
            seed = asked.one("max_tokens")
        if self.broken == "one_seed":
            seed = None
        prompt = asked.one("text_input").decode(errors="replace")
        end_id = asked.one("end_id", END_ID)
        most = min(asked.one("max_tokens", 1), MAX_SEQ_LEN) + (self.broken == "max_tokens_plus_one")
        if self.broken == "ignores_end_token":
            end_id = END_ID if end_id >= 0 else end_id
        if self.broken == "no_end_without_end_token" and end_id == -1:
            end_id = END_ID
        ids = self._ids_after(prompt, seed, end_id, asked.one("min_tokens", 0))
        other = self._running > 1
        if self.broken == "parts_at_near_ties":  # rounding decides anew for each request
            other = random.Random(self._served).random() < 0.5
        undecided = self.broken in CANDIDATES
        for place in range(max(most, 1)):
            token = next(ids, None)
            if token is None:
                if self.broken == "ends_after_end_token":
                    yield end_id, -0.5
                return
            score = score_of(prompt, seed, place, token)
            if undecided and place >= PARTS_FROM and token < len(VOCABULARY) - 4:
                undecided = False
                score = CANDIDATES[self.broken or ""][other]
                if other:
                    token = (token + 1) % (len(VOCABULARY) - 4)
                    seed = f"{seed}, the other way"
                    ids = self._ids_after(prompt, seed, end_id)
            yield token, score

    def _generate(self, asked: Asked, context: Any) -> Iterator[Any]:
        stream = asked.one("stream", False) and self.broken != "never_streams"
        words = [word.decode() for word in asked.values.get("stop_words", ())]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        sent = text = ""
        scores: list[float] = []
        new = 0
        times = [time.monotonic_ns()]
        again = self._met(asked)
        if again is not None and again == (self.broken == "slow_reuse"):
            time.sleep(4 * STEP_S)
        for token, score in self._tokens(asked):
            time.sleep(STEP_S)
            keeps = self.broken in ("cancel_keeps_slot", "runs_on")
            if context and not context.is_active() and not keeps:
                return
            times.append(time.monotonic_ns())
            scores.append(score)
            new += 1
            data = VOCABULARY[token] if token < len(VOCABULARY) else b"<end>"
            if self.broken == "broken_characters":
                fresh = data.decode(errors="replace")
            else:
                fresh = decoder.decode(data)
            text += fresh
            cut = self._stop(text, fresh, words)
            if cut is not None:
                text = cut
                break
            safe = len(text) - self._undecided(text, words)
            gone = context and not context.is_active()  # what it says would end it
            if stream and safe > len(sent) and not gone:
                begin = 0 if self.broken == "accumulates_undeclared" else len(sent)
                yield self._piece(asked, text[begin:safe], scores, new, times)
                sent, new = text[:safe], 0
        else:
            text += decoder.decode(b"", final=True)
        if self.broken == "mixes_streams" and self._running > 2 and stream:
            text += " mixed"
        if self.broken == "accumulates_undeclared":
            sent = ""
        if self.broken == "loses_first_space" and not stream:
            text = text.removeprefix(" ")
        if not stream and asked.one("exclude_input_in_output", True) is False:
            text = asked.prompt + (" " if self.broken == "loses_first_space" else "") + text
        rest = text[len(sent) :] if stream else text
        yield self._piece(asked, rest, scores, new, times, final=True)

    def _met(self, asked: Asked) -> bool | None:
        """Whether a long prompt came before; None for a short one."""
        text = asked.one("text_input")
        if len(text) < 200:
            return None
        met = text in self._long
        self._long.add(text)
        return met

    def _stop(self, text: str, fresh: str, words: list[str]) -> str | None:
        if self.broken == "ignores_stop_words":
            return None
        where = fresh if self.broken == "stop_words_within_tokens" else text
        found = [word for word in words if word in where]
        if not found:
            return None
        end, place = min((text.index(word) + len(word), text.index(word)) for word in found)
        return text[:end] if self.broken == "keeps_stop_word" else text[:place]

    @staticmethod
    def _undecided(text: str, words: list[str]) -> int:
        longest = max((len(word) for word in words), default=0)
        ends = (n for n in range(longest, 0, -1) if any(w.startswith(text[-n:]) for w in words))
        return next(ends, 0) if text else 0

    def _piece(
        self,
        asked: Asked,
        text: str,
        scores: list[float],
        new: int,
        times: list[int],
        *,
        final: bool = False,
    ) -> Any:
        added = asked.one("add_special_tokens")
        if self.broken == "ignores_add_special_tokens":
            added = None
        if self.broken == "loses_spaces" and asked.one("stream"):
            text = text.lstrip()
        numbers = {
            "num_input_tokens": len(self._prompt_ids(asked.one("text_input"), added)),
            "num_output_tokens": new if asked.one("stream") else len(scores),
        }
        if self.broken == "no_token_counts":
            numbers = {}
        shape = (1, 1) if self.broken == "nested_texts" else (1,)
        response = piece(text, final=final, shape=shape, **numbers)
        if asked.one("return_perf_metrics"):
            self._add_metrics(response.infer_response, times, final=final)
        if asked.one("return_log_probs") and self.broken != "no_log_probs":
            new = numbers.get("num_output_tokens", new)
            sent = scores[len(scores) - new :]
            if self.broken == "wrong_log_prob_count":
                sent = [*sent, -0.5]
            if self.broken == "repeats_log_probs":
                sent = list(scores)
            if self.broken == "positive_log_probs":
                sent = [0.5 for _ in sent]
            total = sum(scores) * (2 if self.broken == "wrong_log_prob_sum" else 1)
            infer = response.infer_response
            add_output(infer, "output_log_probs", "FP32", [1, 1, len(sent)], sent)
            add_output(infer, "cum_log_probs", "FP32", [1, 1], [total])
        return response

    def _add_metrics(self, infer: Any, times: list[int], *, final: bool) -> None:
        """Args:
        times: When the request arrived, and when each token came.
        """
        if self.broken == "metrics_with_the_last_response_only" and not final:
            return
        arrived, first = times[0], times[min(1, len(times) - 1)]
        last = first - 1 if self.broken == "metrics_out_of_order" else times[-1]
        for name, value in (
            ("arrival", arrived),
            ("first_scheduled", arrived),
            ("first_token", first),
            ("last_token", last),
        ):
            add_output(infer, f"{name}_time_ns", "INT64", [1, 1], [value])
        for name, value in (
            ("kv_cache_alloc_new_blocks", 1),
            ("kv_cache_reused_blocks", int(bool(self._long))),
            ("kv_cache_alloc_total_blocks", 1),
            ("total_accepted_draft_tokens", 0),
            ("total_draft_tokens", 0),
        ):
            add_output(infer, name, "INT32", [1, 1], [value])
        add_output(infer, "acceptance_rate", "FP32", [1, 1], [0.0])

    def _engine(self, asked: Asked) -> Iterator[Any]:
        """``tensorrt_llm``: ids to ids, those of the text models."""
        problem = self._wrong_input(asked)
        given = asked.values["input_ids"]
        if not problem and len(given) + asked.one("request_output_len") > MAX_SEQ_LEN:
            problem = f"the engine was compiled for at most {MAX_SEQ_LEN} tokens"
        if problem:
            yield refusal(problem)
            return
        prompt, begun = self._begun(given)
        least = asked.one("min_tokens", 0)
        ids = self._ids_after(prompt, None, asked.one("end_id"), least and least + begun)
        for _ in range(begun):
            next(ids)
        new: list[int] = []
        if asked.one("exclude_input_in_output") is False:
            new = list(given)
        times = [time.monotonic_ns()]
        left = asked.one("request_output_len")
        stops = {asked.values["stop_words_list"][0]} if "stop_words_list" in asked.values else set()
        while left > 0 and asked.id not in self._stopped:
            time.sleep(STEP_S)
            token = next(ids, None)
            if token is None or (token in stops and len(asked.values["stop_words_list"]) == 2):
                break
            if self.broken == "streams_other_ids" and asked.one("streaming"):
                token = 1
            if self.broken == "unnoticed_end" and token == 0:
                token = OTHER_SPECIAL_ID
            new.append(token)
            times.append(time.monotonic_ns())
            left -= 1
            if asked.one("streaming") and left > 0:
                yield self._ids(asked, new, times)
                new = []
        yield self._ids(asked, new, times, final=True)

    def _begun(self, given: tuple[int, ...]) -> tuple[str, int]:
        """The prompt that ids begin with, and how many of its continuation follow it."""
        for ids, prompt in sorted(self._prompts.items(), key=lambda item: -len(item[0])):
            rest = given[len(ids) :]
            if given[: len(ids)] == ids:
                after = self._ids_after(prompt, None, -1)
                if all(next(after) == token for token in rest):
                    return prompt, len(rest)
        return str(given), 0

    def _ids(self, asked: Asked, new: list[int], times: list[int], *, final: bool = False) -> Any:
        response = pb.ModelStreamInferResponse()
        infer = response.infer_response
        add_output(infer, "output_ids", "INT32", [1, 1, len(new)], new)
        for name, value in (
            ("sequence_length", len(new)),
            ("num_input_tokens", len(asked.values["input_ids"])),
            ("num_output_tokens", len(new)),
        ):
            add_output(infer, name, "INT32", [1, 1], [value])
        scores = [-0.5] * len(new)
        if asked.one("return_log_probs"):
            prompt, begun = self._begun(asked.values["input_ids"])
            scores = [score_of(prompt, None, begun + n, token) for n, token in enumerate(new)]
        if self.broken == "other_log_probs":
            scores = [score - 1 for score in scores]
        add_output(infer, "output_log_probs", "FP32", [1, 1, len(new)], scores)
        add_output(infer, "cum_log_probs", "FP32", [1, 1], [-0.5 * (len(times) - 1)])
        if asked.one("return_perf_metrics"):
            self._add_metrics(infer, times, final=final)
        infer.parameters["triton_final_response"].bool_param = final
        return response


def answer_once(server: FakeTriton) -> None:
    """Makes every model of a server one that is not decoupled."""
    for name, model in server.models.items():
        server.models[name] = replace(model, decoupled=False)
