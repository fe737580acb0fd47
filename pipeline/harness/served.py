"""lm-eval's interface to a model, over a server's gRPC endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import postprocess_generated_text
from tqdm import tqdm

from pipeline.errors import UsageError
from pipeline.evaluation.tasks.encoding import Pair, encode, encode_pair
from pipeline.harness.generation import Wanted, wanted
from pipeline.harness.prompts import STREAMS, Prompts
from pipeline.harness.windows import rolling_pairs
from pipeline.source.tokens import TextTokenizer
from trtllm_client import Client

SEED = 1234


class ServedModel(LM):  # type: ignore[misc]
    """A server of this project's repositories, or any with NVIDIA's tensor names.

    Args:
        client: Of its gRPC address.
        tokenizer: The source's, which cuts contexts that are too long.
        longest: The most tokens of a prompt and its answer together.
        longest_input: The most tokens of a prompt.
    """

    def __init__(
        self, client: Client, tokenizer: TextTokenizer, *, longest: int, longest_input: int
    ) -> None:
        super().__init__()
        self._client = client
        self._tokenizer, self._longest, self._longest_input = tokenizer, longest, longest_input

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Scores continuations of contexts: the log-likelihood, and whether greedy would say it."""
        pairs = [
            encode_pair(self._tokenizer, context, continuation, self._scored)
            for context, continuation in (request.args for request in requests)
        ]
        return self._likelihoods(pairs, disable_tqdm, greedy=True)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Scores whole texts, in the windows that lm-eval cuts."""
        owners, pairs = [], []
        for index, request in enumerate(requests):
            for pair in rolling_pairs(self._tokenizer, request.args[0], self._scored):
                owners.append(index)
                pairs.append(pair)
        sums = [0.0] * len(requests)
        found = self._likelihoods(pairs, disable_tqdm, greedy=False)
        for owner, (nats, _) in zip(owners, found, strict=True):
            sums[owner] += nats
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Lets the text model go on with each text, several at a time."""
        every = [wanted(request.args) for request in requests]
        with ThreadPoolExecutor(STREAMS) as pool:
            texts = pool.map(self._text, every)
            return list(tqdm(texts, total=len(every), desc="generating", disable=disable_tqdm))

    @property
    def _scored(self) -> int:
        """Tokens in front of the last one of a text that is scored.

        All of it is the prompt, and the engine adds a token behind it.
        """
        return min(self._longest_input, self._longest - 1) - 1

    def _likelihoods(
        self, pairs: Sequence[Pair], quiet: bool, *, greedy: bool
    ) -> list[tuple[float, bool]]:
        with tqdm(total=len(pairs), desc="scoring", disable=quiet) as bar:
            return Prompts(self._client).likelihoods(pairs, greedy=greedy, advance=bar.update)

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
