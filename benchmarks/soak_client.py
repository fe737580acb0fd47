"""A client process of benchmarks/soak.py: a seeded, weighted mix of requests by NVIDIA's client.

Greedy and seeded answers are held against those that the same server gave when it was asked nothing
else. Prints one line of JSON a second: requests of each kind since the start, and what went wrong.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import re
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

PROMPTS = (
    "Once there was a gentle boy named Jack, and",
    "Once there was a girl named Zoë. She had a",
    "One day, the hen",
    "In the evening they walked home from the",
)
SHORT, LONG = 16, 160
SAMPLED = {"top_k": 50, "top_p": 0.9, "temperature": 1.1, "seed": 7}
PATIENCE_S = 60.0
REGEX = "[0-9]{3}-[a-f]{2}"
TYPES = {
    "max_tokens": ("INT32", np.int32),
    "request_output_len": ("INT32", np.int32),
    "input_ids": ("INT32", np.int32),
    "input_lengths": ("INT32", np.int32),
    "top_k": ("INT32", np.int32),
    "top_p": ("FP32", np.float32),
    "temperature": ("FP32", np.float32),
    "seed": ("UINT64", np.uint64),
    "stream": ("BOOL", np.bool_),
    "return_log_probs": ("BOOL", np.bool_),
    "return_prompt_log_probs": ("BOOL", np.bool_),
}
# Kind and how often it comes.
MIX = {
    "short": 30,
    "long": 6,
    "sampled": 12,
    "log_probs": 8,
    "batch": 6,
    "guide": 4,
    "scored": 4,
    "cancel": 10,
    "deadline": 5,
    "vanish": 5,
    "bad": 10,
    "scrape": 3,
    "reconnect": 2,
}


class Wrong(Exception):  # noqa: N818
    """An answer that is not what it must be."""


class Connection:
    """A gRPC connection; one request at a time."""

    def __init__(self, url: str) -> None:
        self._client = grpcclient.InferenceServerClient(url)

    def close(self) -> None:
        """Ends it."""
        self._client.close()

    def ask(
        self,
        model: str,
        inputs: dict[str, Any],
        outputs: Sequence[str] = (),
        *,
        give_up_after: int | None = None,
        deadline_s: float = PATIENCE_S,
    ) -> list[Any]:
        """Every response to one request.

        Raises:
            InferenceServerException: The server's error, or that of a deadline.
            Wrong: There is no end.
        """
        answers: queue.Queue[Any] = queue.Queue()
        self._client.start_stream(
            lambda result, error: answers.put(error or result), stream_timeout=deadline_s
        )
        responses: list[Any] = []
        stopped = False
        try:
            self._client.async_stream_infer(
                model,
                [tensor(name, value) for name, value in inputs.items()],
                outputs=[grpcclient.InferRequestedOutput(name) for name in outputs] or None,
                enable_empty_final_response=True,
            )
            while True:
                try:
                    answer = answers.get(timeout=PATIENCE_S + 10)
                except queue.Empty:
                    raise Wrong(f"no end of a request to {model}") from None
                if isinstance(answer, Exception):
                    raise answer
                response = answer.get_response()
                if response.outputs:
                    responses.append(answer)
                if response.parameters["triton_final_response"].bool_param:
                    return responses
                if give_up_after is not None and len(responses) >= give_up_after:
                    stopped = True
                    return responses
        finally:
            self._client.stop_stream(cancel_requests=stopped)


def tensor(name: str, value: Any) -> grpcclient.InferInput:
    """An input; a list of texts or numbers is a batch, one of lists a row each."""
    if name in TYPES:
        datatype, dtype = TYPES[name]
        array = np.array(value, dtype)
        array = array.reshape(1, 1) if array.ndim == 0 else array
        array = array.reshape(-1, 1) if array.ndim == 1 else array
    else:
        datatype = "BYTES"
        texts = value if isinstance(value, list) else [value]
        array = np.array([[text.encode()] for text in texts], np.object_)
    made = grpcclient.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def text_of(responses: Sequence[Any]) -> str:
    """The text of all responses of a stream."""
    return b"".join(answer.as_numpy("text_output")[0] for answer in responses).decode()


class Mix:
    """What one thread asks.

    Args:
        golden: Texts by key (:func:`golden_texts`).
        offers: ``guides`` and ``scores``, where the repository serves them.
    """

    def __init__(
        self, urls: argparse.Namespace, golden: dict[str, str], offers: Sequence[str], seed: str
    ) -> None:
        self._urls, self._golden = urls, golden
        self._random = random.Random(seed)
        self._connection = Connection(urls.grpc)
        left_out = {"guide": "guides" not in offers, "scored": "scores" not in offers}
        self.kinds = [kind for kind in MIX if not left_out.get(kind)]

    def one(self) -> str:
        """Asks once and returns the kind."""
        kind = self._random.choices(self.kinds, [MIX[kind] for kind in self.kinds])[0]
        asked: Callable[[], None] = getattr(self, f"_{kind}")
        try:
            asked()
        except Wrong as error:
            raise Wrong(f"{kind}: {error}") from error
        return kind

    def _prompt(self) -> str:
        return self._random.choice(PROMPTS)

    def _expect(self, key: str, prompt: str, text: str) -> None:
        if text != self._golden[f"{key} {prompt}"]:
            raise Wrong(f"{prompt!r} went on with {text!r}")

    def _short(self) -> None:
        prompt = self._prompt()
        inputs = {"text_input": prompt, "max_tokens": SHORT, "stream": self._random.random() < 0.5}
        model = self._random.choice(("tensorrt_llm_bls", "tensorrt_llm_bls", "ensemble"))
        if model == "ensemble":
            # A character split over two responses is not whole there.
            inputs["stream"] = False
        responses = self._connection.ask(model, inputs, ["text_output"])
        self._expect("short", prompt, text_of(responses))

    def _long(self) -> None:
        prompt = self._prompt()
        inputs = {"text_input": prompt, "max_tokens": LONG, "stream": True}
        responses = self._connection.ask("tensorrt_llm_bls", inputs, ["text_output"])
        self._expect("long", prompt, text_of(responses))

    def _sampled(self) -> None:
        prompt = self._prompt()
        inputs = {"text_input": prompt, "max_tokens": SHORT, "stream": True, **SAMPLED}
        responses = self._connection.ask("tensorrt_llm_bls", inputs, ["text_output"])
        self._expect("sampled", prompt, text_of(responses))

    def _log_probs(self) -> None:
        inputs = {"text_input": self._prompt(), "max_tokens": SHORT, "return_log_probs": True}
        wanted = ["text_output", "cum_log_probs", "output_log_probs"]
        (answer,) = self._connection.ask("tensorrt_llm_bls", inputs, wanted)
        each, total = answer.as_numpy("output_log_probs"), answer.as_numpy("cum_log_probs").item()
        if not np.isfinite(each).all() or abs(each.sum() - total) > 1e-3 or (each > 1e-6).any():
            raise Wrong(f"log probabilities {each.tolist()} with the sum {total}")

    def _batch(self) -> None:
        inputs = {
            "text_input": list(PROMPTS),
            "max_tokens": [SHORT] * len(PROMPTS),
            "stream": [True] * len(PROMPTS),
        }
        wanted = ["text_output", "batch_index"]
        rows: dict[int, bytes] = {}
        for answer in self._connection.ask("tensorrt_llm_bls", inputs, wanted):
            row = int(answer.as_numpy("batch_index").item())
            rows[row] = rows.get(row, b"") + answer.as_numpy("text_output")[0]
        for row, prompt in enumerate(PROMPTS):
            self._expect("short", prompt, rows.get(row, b"").decode())

    def _guide(self) -> None:
        inputs = {
            "text_input": self._prompt(),
            "max_tokens": 32,
            "guided_decoding_guide_type": "regex",
            "guided_decoding_guide": REGEX,
        }
        text = text_of(self._connection.ask("tensorrt_llm_bls", inputs, ["text_output"]))
        if not re.fullmatch(REGEX, text):
            raise Wrong(f"{text!r} does not follow {REGEX}")

    def _scored(self) -> None:
        count = self._random.randrange(2, 60)
        inputs = {
            "input_ids": [[self._random.randrange(3, 1000) for _ in range(count)]],
            "input_lengths": count,
            "request_output_len": 1,
            "return_prompt_log_probs": True,
        }
        wanted = ["output_ids", "sequence_length", "prompt_log_probs"]
        scores = self._connection.ask("tensorrt_llm", inputs, wanted)[0].as_numpy(
            "prompt_log_probs"
        )
        if scores.size != count - 1 or not np.isfinite(scores).all():
            raise Wrong(f"{scores.size} scores of a prompt of {count}")

    def _cancel(self) -> None:
        model = self._random.choice(("tensorrt_llm_bls", "tensorrt_llm_bls", "ensemble"))
        inputs = {"text_input": self._prompt(), "max_tokens": LONG, "stream": True}
        self._connection.ask(model, inputs, give_up_after=self._random.randrange(1, 6))

    def _deadline(self) -> None:
        inputs = {"text_input": self._prompt(), "max_tokens": LONG, "stream": True}
        deadline = self._random.choice((0.02, 0.05, 0.1))
        try:
            self._connection.ask("tensorrt_llm_bls", inputs, deadline_s=deadline)
        except grpcclient.InferenceServerException as error:
            # The stream's time may be over before the request is sent.
            if "eadline" not in str(error) and "no longer in valid state" not in str(error):
                raise
        self._reconnect()

    def _vanish(self) -> None:
        """A client that is there no more in the middle of its answer: its socket is reset."""
        body = json.dumps({"text_input": self._prompt(), "max_tokens": LONG, "stream": True})
        host, _, port = self._urls.http.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as sock:
            sock.sendall(
                b"POST /v2/models/tensorrt_llm_bls/generate_stream HTTP/1.1\r\nHost: a\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body.encode()), body.encode())
            )
            sock.recv(self._random.choice((1, 300, 2000)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _bad(self) -> None:
        prompt = self._prompt()
        wrong: dict[str, Any] = self._random.choice(
            (
                {"text_input": prompt, "max_tokens": 0},
                {"text_input": prompt, "max_tokens": 4, "temperature": -1.0},
                {"text_input": prompt, "max_tokens": 4, "top_p": 2.0},
                {"text_input": prompt, "max_tokens": 4, "nothing": "a"},
                {"text_input": "word " * 2000, "max_tokens": 4},
                {"text_input": prompt},
            )
        )
        model = self._random.choice(("tensorrt_llm_bls", "ensemble"))
        try:
            self._connection.ask(model, wrong)
        except grpcclient.InferenceServerException as error:
            if "inside the server" in str(error) or "Traceback" in str(error):
                raise Wrong(f"a bad request was answered with {error}") from error
        else:
            raise Wrong(f"answered: {str(wrong)[:200]}")

    def _scrape(self) -> None:
        with urllib.request.urlopen(self._urls.metrics, timeout=PATIENCE_S) as answer:  # noqa: S310
            if b"nv_trt_llm_request_metrics" not in answer.read():
                raise Wrong("the engine's metrics are missing")
        ready = f"{self._urls.http}/v2/health/ready"
        with urllib.request.urlopen(ready, timeout=PATIENCE_S):  # noqa: S310
            pass

    def _reconnect(self) -> None:
        self._connection.close()
        self._connection = Connection(self._urls.grpc)


def golden_texts(url: str) -> dict[str, str]:
    """What the server says when it is asked nothing else, by kind and prompt."""
    connection, texts = Connection(url), {}
    for prompt in PROMPTS:
        for kind, more in (
            ("short", {"max_tokens": SHORT}),
            ("long", {"max_tokens": LONG}),
            ("sampled", {"max_tokens": SHORT, **SAMPLED}),
        ):
            inputs = {"text_input": prompt, **more}
            texts[f"{kind} {prompt}"] = text_of(
                connection.ask("tensorrt_llm_bls", inputs, ["text_output"])
            )
    connection.close()
    return texts


def main() -> None:
    """Asks until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("grpc", "http", "metrics", "golden", "seed"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--offers", default="")
    parser.add_argument("--until", type=float, required=True, help="seconds since the epoch")
    arguments = parser.parse_args()
    with open(arguments.golden, encoding="utf-8") as file:  # noqa: PTH123
        golden = json.load(file)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    lock = threading.Lock()

    def ask(thread: int) -> None:
        mix = Mix(arguments, golden, arguments.offers.split(","), f"{arguments.seed}-{thread}")
        while time.time() < arguments.until:
            try:
                kind = mix.one()
            except (Wrong, OSError, grpcclient.InferenceServerException) as error:  # noqa: PERF203
                with lock:
                    wrong.append(f"{time.strftime('%H:%M:%S')} {str(error)[:300]}")
                time.sleep(0.5)
            else:
                with lock:
                    counts[kind] += 1

    threads = [
        threading.Thread(target=ask, args=(thread,), daemon=True)
        for thread in range(arguments.threads)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        with lock:
            print(json.dumps({"counts": counts, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
