"""lm-eval's interface to a model, over logits of token ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import postprocess_generated_text
from tqdm import tqdm

from pipeline.errors import UnsupportedError, UsageError
from pipeline.evaluation.completions import greedy
from pipeline.evaluation.scoring import Scorer
from pipeline.evaluation.tasks.encoding import Pair, encode, encode_pair
from pipeline.evaluation.tasks.likelihood import log_likelihoods
from pipeline.harness.generation import Wanted, wanted
from pipeline.harness.windows import rolling_pairs
from pipeline.source.tokens import TextTokenizer

# How many texts grow together, and by how many tokens before stop words are looked for.
TOGETHER, TOKENS = 8, 16


class ScoredModel(LM):  # type: ignore[misc]
    """A model that is a scorer.

    Args:
        scorer: The model.
        tokenizer: Its tokenizer.
        longest: The most tokens that it takes at once.
        vocabulary: Logits of each token that count.
        end_ids: Tokens that end a text.
    """

    def __init__(
        self,
        scorer: Scorer,
        tokenizer: TextTokenizer,
        *,
        longest: int,
        vocabulary: int,
        end_ids: Collection[int],
    ) -> None:
        super().__init__()
        self._scorer, self._tokenizer = scorer, tokenizer
        self._longest, self._vocabulary, self._end_ids = longest, vocabulary, end_ids

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Scores continuations of contexts: the log-likelihood, and whether greedy would say it."""
        pairs = [
            encode_pair(self._tokenizer, context, continuation, self._longest)
            for context, continuation in (request.args for request in requests)
        ]
        return self._scored(pairs, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Scores whole texts, in the windows that lm-eval cuts."""
        owners, pairs = [], []
        for index, request in enumerate(requests):
            for pair in rolling_pairs(self._tokenizer, request.args[0], self._longest):
                owners.append(index)
                pairs.append(pair)
        sums = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._scored(pairs, disable_tqdm), strict=True):
            sums[owner] += nats
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Goes on with each text greedily, up to one of its stop words."""
        texts: list[str] = []
        with tqdm(total=len(requests), desc="generating", disable=disable_tqdm) as bar:
            for start in range(0, len(requests), TOGETHER):
                some = requests[start : start + TOGETHER]
                texts += self._texts([wanted(request.args) for request in some])
                bar.update(len(some))
        return texts

    def _scored(self, pairs: Sequence[Pair], quiet: bool) -> list[tuple[float, bool]]:
        with tqdm(total=len(pairs), desc="scoring", disable=quiet) as bar:
            (found,) = log_likelihoods([self._scorer], pairs, self._vocabulary, bar.update)
        return [(likelihood.nats, likelihood.is_greedy) for likelihood in found]

    def _texts(self, requests: Sequence[Wanted]) -> list[str]:
        for request in requests:
            if request.samples:
                raise UnsupportedError(
                    "this task wants sampled texts",
                    why="Here texts are greedy alone",
                    fix="Choose a task with do_sample: false, or measure a server (--model URL)",
                )
        prompts = [self._prompt(request) for request in requests]
        grown = [list(prompt) for prompt in prompts]
        texts = ["" for _ in requests]
        going = list(range(len(requests)))
        while going:
            left = min(
                requests[index].tokens + len(prompts[index]) - len(grown[index]) for index in going
            )
            step = min(TOKENS, left)
            new = greedy(self._scorer, [grown[index] for index in going], step, self._end_ids)
            still = []
            for index, ids in zip(going, new, strict=True):
                grown[index] += ids
                texts[index] = self._text(prompts[index], grown[index])
                full = len(grown[index]) - len(prompts[index]) >= requests[index].tokens
                stopped = any(word in texts[index] for word in requests[index].until)
                if len(ids) == step and not full and not stopped:
                    still.append(index)
            going = still
        return [
            postprocess_generated_text(text, request.until, None)
            for text, request in zip(texts, requests, strict=True)
        ]

    def _prompt(self, request: Wanted) -> list[int]:
        room = self._longest - request.tokens
        if room < 1:
            raise UsageError(
                f"the task wants {request.tokens} new tokens, and the model takes {self._longest}",
                fix="Choose another task",
            )
        return encode(self._tokenizer, request.context)[-room:]

    def _text(self, prompt: Sequence[int], whole: Sequence[int]) -> str:
        # Of the whole, since some tokenizers drop the space in front of a text.
        return self._tokenizer.decode(whole)[len(self._tokenizer.decode(prompt)) :]
