"""lm-eval's interface to a model, over a server's gRPC endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import postprocess_generated_text
from tqdm import tqdm

from pipeline.errors import UnsupportedError, UsageError
from pipeline.evaluation.tasks.encoding import encode
from pipeline.harness.generation import Wanted, wanted
from pipeline.source.texts import TextTokenizer
from trtllm_client import Client

STREAMS = 8
SEED = 1234


class ServedModel(LM):  # type: ignore[misc]
    """A server of this project's repositories, or any with NVIDIA's tensor names.

    Args:
        url: Its gRPC address.
        tokenizer: The source's, which cuts contexts that are too long.
        longest: The most tokens of a prompt and its answer together.
        longest_input: The most tokens of a prompt.
    """

    def __init__(
        self, url: str, tokenizer: TextTokenizer, *, longest: int, longest_input: int
    ) -> None:
        super().__init__()
        self._client = Client(url)
        self._tokenizer, self._longest, self._longest_input = tokenizer, longest, longest_input

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Refuses: the server does not tell how likely given tokens are."""
        del requests, disable_tqdm
        raise _no_likelihoods(self._client.url)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Refuses, as :meth:`loglikelihood`."""
        del requests, disable_tqdm
        raise _no_likelihoods(self._client.url)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Lets the text model go on with each text, several at a time."""
        every = [wanted(request.args) for request in requests]
        with ThreadPoolExecutor(STREAMS) as pool:
            texts = pool.map(self._text, every)
            return list(tqdm(texts, total=len(every), desc="generating", disable=disable_tqdm))

    def _text(self, request: Wanted) -> str:
        drawn = {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
        completion = self._client.generate(
            self._cut(request),
            max_tokens=request.tokens,
            stop_words=request.until,
            exclude_input_in_output=True,
            seed=SEED if request.samples else None,
            **(drawn if request.samples else {"top_k": 1}),
        )
        text: str = postprocess_generated_text(completion.text, request.until, None)
        return text

    def _cut(self, request: Wanted) -> str:
        """The context, or as much of its end as there is room for."""
        room = min(self._longest_input, self._longest - request.tokens)
        if room < 1:
            raise UsageError(
                f"the task wants {request.tokens} new tokens, and the server takes {self._longest}",
                fix="Choose another task, or compile an engine with a larger max_seq_len",
            )
        text = request.context
        kept = room
        while len(ids := encode(self._tokenizer, text)) > room:
            # The rest may have more tokens of its own than it had within the whole.
            text = self._tokenizer.decode(ids[-kept:])
            kept -= 1
        return text


def _no_likelihoods(url: str) -> UnsupportedError:
    return UnsupportedError(
        "this server does not tell how likely given tokens are, which the task needs",
        where=url,
        why="NVIDIA's tensor names have context_logits for that: a number for every token of the "
        "vocabulary at every position, which the CPU engine does not serve and this command does "
        "not read",
        fix="Choose tasks that generate text (generate_until), or measure --model checkpoint",
    )
