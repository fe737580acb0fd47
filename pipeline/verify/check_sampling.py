"""Are seeds kept, and are log probabilities those of the model?"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.triton.contract import ENGINE, ENSEMBLE, PREPROCESSING
from pipeline.verify.check import CheckFailed, CheckSkipped, Context, Details, check
from pipeline.verify.requests import engine_inputs, request, text_inputs, text_of
from pipeline.verify.same_text import difference
from pipeline.verify.tokens import generated_ids, token_ids
from trtllm_client import Completion

_TOKENS = 16
_ROUNDS = 2
_SEEDS = (0, 1, 7, 2**31, 2**63, 2**64 - 1)
_SAMPLED: dict[str, Any] = {"top_k": 50, "temperature": 1.0}
# Log probabilities of one token differ a little between prefill and decoding, by their kernels.
_CLOSE = 0.05


@check(
    "a seed gives the same text each time, whatever its neighbours; other seeds give others",
    asks="six seeds up to 2^64 - 1, alone, again, and all at once, sampled",
    thorough=True,
)
def seeds(context: Context) -> Details:
    """Sampled texts alone and together; greedy ones are another check's.

    A draw may fall so close to the border of two tokens that the rounding of another batch decides
    (1e-6 of a probability, on the CPU), as with 2^64 - 1 on the demo's model. That happens to one
    seed; where two give other texts, it is their neighbours.
    """
    prompt = context.plan.prompts[0]

    def ask(seed: int) -> Completion:
        return context.greedy(prompt, _TOKENS, seed=seed, **_SAMPLED)

    alone = {seed: ask(seed) for seed in _SEEDS}
    again = ask(_SEEDS[0])
    if problem := difference(context, prompt, alone[_SEEDS[0]], again, greedy=False):
        raise CheckFailed(f"seed {_SEEDS[0]} gives another text again, {problem}")
    parted: Counter[int] = Counter()
    problem = ""
    for _ in range(_ROUNDS):
        with ThreadPoolExecutor(len(_SEEDS)) as pool:
            together = dict(zip(_SEEDS, pool.map(ask, _SEEDS), strict=True))
        for seed, answer in together.items():
            if found := difference(context, prompt, alone[seed], answer, greedy=False):
                parted[seed] += 1
                problem = f"seed {seed} gives another text with neighbours, {found}"
    if len(parted) > 1:
        raise CheckFailed(f"{problem}; so do {len(parted) - 1} other seeds", rounds=dict(parted))
    texts = {answer.text for answer in alone.values()}
    if len(texts) == 1:
        raise CheckFailed(f"{len(_SEEDS)} seeds give one text", text=texts.pop())
    return {"seeds": len(_SEEDS), "texts": len(texts), "at_a_border": sorted(parted)}


@check(
    "the log probability of each token is what the model gives for it after those before it",
    asks="log probabilities of an answer, and of each of its tokens asked for alone",
    thorough=True,
    tensors=True,
)
def log_probs_alone(context: Context) -> Details:
    """In the answer a token is decoded with what is in the cache, alone it comes from a prompt."""
    for model in (ENGINE, PREPROCESSING):
        if not context.has(model):
            raise CheckSkipped(f"the server has no {model}")
    prompt = context.plan.prompts[0]
    begin = token_ids(context, prompt)
    ids = generated_ids(context, prompt, _TOKENS)
    answer = context.greedy(prompt, len(ids), return_log_probs=True, end_id=-1)
    scores = answer.output_log_probs or ()
    if len(scores) != len(ids):
        raise CheckFailed(f"{len(scores)} log probabilities for {len(ids)} tokens")
    close = max(_CLOSE, context.tolerance or 0)
    furthest = 0.0
    for place, (token, score) in enumerate(zip(ids, scores, strict=True)):
        inputs = engine_inputs(
            [*begin, *ids[:place]],
            1,
            stream=False,
            exclude_input_in_output=True,
            return_log_probs=True,
        )
        (alone,) = context.triton.responses(request(ENGINE, inputs))
        found, its = int(alone["output_ids"].values[0]), float(alone["output_log_probs"].values[0])
        furthest = max(furthest, abs(its - score))
        if abs(its - score) > close:
            raise CheckFailed(
                f"token {place} has the log probability {score:.4f} in the answer and {its:.4f} "
                f"alone, and {close:g} is allowed",
                tokens=[token, found],
            )
        if found != token and context.tolerance is None:
            raise CheckFailed(f"token {place} is {token} in the answer and {found} alone")
    return {"tokens": len(ids), "furthest": round(furthest, 6)}


@check(
    "streamed, every model gives what it gives whole",
    asks="each prompt whole and streamed, of the ensemble and of tensorrt_llm",
    thorough=True,
    tensors=True,
)
def every_model_streams(context: Context) -> Details:
    """Ids of the engine; of the ensemble, texts of ASCII alone, since it decodes each piece."""
    context.needs_streams()
    compared = {ENSEMBLE: 0, ENGINE: 0}
    if context.tolerance is not None:
        raise CheckSkipped("not exercised: texts of this server may part at near ties")
    for prompt in context.plan.prompts:
        if context.has(ENSEMBLE):
            whole, streamed = (_text(context, prompt, stream=stream) for stream in (False, True))
            if whole.isascii():
                compared[ENSEMBLE] += 1
                if whole != streamed:
                    raise CheckFailed(f"ensemble: streamed {streamed!r}, whole {whole!r}")
        if context.has(ENGINE) and context.has(PREPROCESSING):
            one, other = (_ids(context, prompt, stream=stream) for stream in (False, True))
            compared[ENGINE] += 1
            if one != other:
                raise CheckFailed(f"{ENGINE}: streamed {other}, whole {one}")
    if not any(compared.values()):
        raise CheckSkipped(f"the server has no {ENSEMBLE} and no {ENGINE}, or no text is ASCII")
    return {"compared": compared}


def _text(context: Context, prompt: str, *, stream: bool) -> str:
    inputs = text_inputs([prompt], _TOKENS, stream=stream)
    return "".join(map(text_of, context.triton.responses(request(ENSEMBLE, inputs))))


def _ids(context: Context, prompt: str, *, stream: bool) -> list[int]:
    inputs = engine_inputs(
        token_ids(context, prompt), _TOKENS, stream=stream, exclude_input_in_output=True
    )
    ids: list[int] = []
    for one in context.triton.responses(request(ENGINE, inputs)):
        length = int(one["sequence_length"].values[0])
        ids += [int(token) for token in one["output_ids"].values[:length]]
    return ids
