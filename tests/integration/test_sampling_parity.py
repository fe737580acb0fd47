"""What each sampling parameter does on the CPU, against logits and formulas from elsewhere.

The model has random weights and scores of both signs, with the best below zero in places, so that
neither a peaked distribution nor a positive best score can hide a wrong formula. Logits come from
transformers' model, formulas from its logits processors or are written out here.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from model_repo.tensorrt_llm.engine import Engine
from model_repo.tensorrt_llm.request import GenerationRequest, RequestError, Sampling
from model_repo.tensorrt_llm.sampling import generation_config, read_sampling
from tests.integration.engine_front_support import settings, write_engine

Logits = npt.NDArray[np.float64]
Rule = Callable[[Logits, list[int], list[int]], Logits]

VOCABULARY = 64
TOKENS = 30
PROMPTS = [np.random.default_rng(seed).integers(3, VOCABULARY, 12).tolist() for seed in range(3)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
        # A feature that is large for every token, and lowers every score by about as much.
        model.model.embed_tokens.weight[:, 0] = 4
        model.lm_head.weight.normal_(0, 0.35)
        model.lm_head.weight[:, 0] = -4
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder, safe_serialization=True)
    model.folder = folder
    return model


@pytest.fixture(scope="module")
def engine(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory: Path = write_engine(reference.folder, tmp_path_factory.mktemp("engine"))
    made = Engine(settings(directory))
    made.ids = itertools.count()
    return made


def logits(reference: Any, tokens: list[int]) -> Logits:
    with torch.no_grad():
        found: Logits = reference(torch.tensor([tokens])).logits[0, -1].double().numpy()
    return found


def expected(reference: Any, prompt: list[int], rule: Rule, tokens: int = TOKENS) -> list[int]:
    generated: list[int] = []
    for _ in range(tokens):
        scores = rule(logits(reference, [*prompt, *generated]), prompt, generated)
        generated.append(int(scores.argmax()))
    return generated


def follows(reference: Any, prompt: list[int], generated: list[int], rule: Rule) -> bool:
    """Tells whether each token is the best one by a rule, given those before it.

    One pass over all of them gives the scores of every step.
    """
    with torch.no_grad():
        scores = reference(torch.tensor([[*prompt, *generated]])).logits[0].double().numpy()
    return all(
        int(rule(scores[len(prompt) - 1 + step].copy(), prompt, generated[:step]).argmax()) == token
        for step, token in enumerate(generated)
    )


def run(engine: Engine, config: Any, prompt: list[int]) -> list[int]:
    ids = engine.tensor(np.array([prompt], np.int64))
    handle = engine.pipeline.add_request(next(engine.ids), ids, config)
    generated: list[int] = []
    while engine.pipeline.has_non_finished_requests():
        engine.pipeline.step()
        while handle.can_read():
            for output in handle.read().values():
                generated += output.generated_ids
    return generated


def configuration(engine: Engine, given: dict[str, Any], **request: Any) -> Any:
    made = GenerationRequest(np.zeros(1, np.int64), TOKENS, read_sampling(given.get), **request)
    return generation_config(engine.genai, made)


def penalised(presence: float, frequency: float, *, prompt_counts: bool, by_sign: bool) -> Rule:
    """Presence and frequency penalties, counted and signed in one of four ways."""

    def rule(scores: Logits, prompt: list[int], generated: list[int]) -> Logits:
        for token, count in Counter([*prompt, *generated] if prompt_counts else generated).items():
            amount = presence + frequency * count
            scores[token] -= -amount if by_sign and scores[token] < 0 else amount
        return scores

    return rule


def test_the_model_is_one_that_tells_formulas_apart(reference: Any) -> None:
    best = [logits(reference, prompt).max() for prompt in PROMPTS]
    assert min(best) < 0 < max(best)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_repetition_penalty_is_transformers(
    engine: Engine, reference: Any, prompt: list[int], penalty: float
) -> None:
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)

    def rule(scores: Logits, asked: list[int], generated: list[int]) -> Logits:
        ids, row = torch.tensor([[*asked, *generated]]), torch.from_numpy(scores)[None]
        done: Logits = processor(ids, row)[0].numpy()
        return done

    found = run(engine, configuration(engine, {"repetition_penalty": penalty}), prompt)
    assert len(found) == TOKENS
    assert follows(reference, prompt, found, rule)


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_min_tokens_bans_the_end_id(engine: Engine, reference: Any, prompt: list[int]) -> None:
    end = expected(reference, prompt, lambda scores, *_: scores, 4)[-1]

    def rule(scores: Logits, _: list[int], generated: list[int]) -> Logits:
        if len(generated) < 20:
            scores[end] = -np.inf
        return scores

    config = configuration(engine, {"min_tokens": 20}, end_id=end)
    found, whole = run(engine, config, prompt), expected(reference, prompt, rule)
    assert found[:20] == whole[:20]
    assert end not in found[:20]
    stops = whole.index(end) if end in whole else len(whole)
    assert found[:stops] == whole[:stops]


@pytest.mark.parametrize(
    ("field", "presence", "frequency"),
    [("presence_penalty", 1.5, 0.0), ("frequency_penalty", 0.0, 0.7)],
)
def test_the_engines_other_penalties_are_not_tensorrts_and_refused(
    engine: Engine, reference: Any, field: str, presence: float, frequency: float
) -> None:
    """Fails when the engine begins to agree with TensorRT-LLM, so that they can be allowed."""
    config = configuration(engine, {})
    setattr(config, field, presence or frequency)
    found = [run(engine, config, prompt) for prompt in PROMPTS]
    assert {len(tokens) for tokens in found} == {TOKENS}
    agrees = {}
    for prompt_counts in (True, False):
        for by_sign in (True, False):
            rule = penalised(presence, frequency, prompt_counts=prompt_counts, by_sign=by_sign)
            agrees[prompt_counts, by_sign] = all(
                follows(reference, prompt, tokens, rule)
                for prompt, tokens in zip(PROMPTS, found, strict=True)
            )
    # penaltyKernels.cu: the prompt counts, and the penalty is subtracted whatever the sign.
    assert not agrees[True, False]
    assert agrees[False, True]
    with pytest.raises(RequestError, match=rf"{field} 0.5: TensorRT-LLM counts the prompt's"):
        read_sampling({field: 0.5}.get)


def test_top_k_and_top_p_cut_in_that_order(engine: Engine, reference: Any) -> None:
    """Every token drawn is one that transformers' warpers leave, in TensorRT-LLM's order."""
    prompt = PROMPTS[0]
    warpers = transformers.LogitsProcessorList(
        [
            transformers.TopKLogitsWarper(8),
            transformers.TemperatureLogitsWarper(1.5),
            transformers.TopPLogitsWarper(0.6),
        ]
    )
    scores = torch.from_numpy(logits(reference, prompt))[None].float()
    allowed = set(
        torch.isfinite(warpers(torch.tensor([prompt]), scores))[0].nonzero()[:, 0].tolist()
    )
    assert 1 < len(allowed) < 8
    drawn = set()
    for seed in range(200):
        given = {"runtime_top_k": 8, "runtime_top_p": 0.6, "temperature": 1.5, "seed": seed}
        config = configuration(engine, given)
        config.max_new_tokens = 1
        drawn |= set(run(engine, config, prompt))
    assert drawn == allowed


def test_top_k_beyond_tensorrts_limit_is_lowered_to_it() -> None:
    # TOP_K_MAX of decodingCommon.h, to which clampTopK lowers it.
    assert read_sampling({"runtime_top_k": 5000}.get).top_k == 1024


def test_a_length_penalty_means_nothing_without_beams() -> None:
    assert read_sampling({"len_penalty": 2.0}.get) == Sampling()
