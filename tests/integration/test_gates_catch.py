"""Damage that was really done to the demo model is caught; ordinary rounding is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.evaluation.completions import compare_completions
from pipeline.evaluation.scoring import compare, scorer_of
from pipeline.evaluation.summary import summarize
from pipeline.evaluation.windows import read_documents, strided_windows
from pipeline.recipe.evaluate import Gates
from pipeline.reference.source import load_source
from pipeline.source.end_ids import read_end_ids
from pipeline.source.lines import read_texts
from pipeline.source.tokens import load_tokenizer
from pipeline.verdict.decision import decide
from pipeline.verdict.gates import checkpoint_gates
from tests.conftest import DEMO_MODEL

TEXTS = DEMO_MODEL.parent / "data" / "heldout.jsonl"
TOKENS, LENGTH = 1500, 256
# Those of configs/demo.yaml.
LIMITS = Gates(perplexity_increase=0.02, top1_agreement=0.93)


@dataclass
class Measured:
    """The demo model, and what a damaged or rounded copy of it measures as."""

    source: Any
    tokenizer: Any
    texts: list[str]

    def verdict(self, harm: Callable[[Any], object], *, skip: int = 0, write: bool = False) -> str:
        """What the gates say of a copy that was harmed.

        Args:
            harm: Does it.
            skip: Texts in front of those that are scored.
            write: Whether it writes completions, too.
        """
        other: Any = load_source(DEMO_MODEL)
        with torch.no_grad():
            harm(other)
        cpu = torch.device("cpu")
        before, after = scorer_of(self.source, cpu), scorer_of(other, cpu)
        documents = read_documents(self.texts[skip:], self.tokenizer, TOKENS)
        windows = strided_windows(documents, LENGTH)
        scores = compare(before, after, windows, self.source.config.vocab_size)
        found = {
            "vocabulary": self.source.config.vocab_size,
            **summarize(documents, windows, scores),
        }
        if write:
            completions = compare_completions(
                before, after, documents,
                tokenizer=self.tokenizer, end_ids=read_end_ids(DEMO_MODEL).ids, longest=512,
            )  # fmt: skip
            found["completions"] = [completion.as_dict() for completion in completions]
        gates = checkpoint_gates(LIMITS, found, self.source.num_parameters(), 4)
        print([(gate.verdict, gate.evidence) for gate in gates])
        return decide(gates, None, None).verdict


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def demo() -> Measured:
    return Measured(load_source(DEMO_MODEL), load_tokenizer(DEMO_MODEL), read_texts(TEXTS))


def linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def scale_layer(layer: int) -> Callable[[Any], object]:
    def harm(model: Any) -> None:
        for linear in linears(model.model.layers[layer]):
            linear.weight.mul_(1.5)

    return harm


def exchange_gate(layer: int) -> Callable[[Any], object]:
    def harm(model: Any) -> None:
        mlp = model.model.layers[layer].mlp
        mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj

    return harm


def another_rope(model: Any) -> None:
    rope = model.model.rotary_emb
    dim = model.config.hidden_size // model.config.num_attention_heads
    rope.inv_freq.copy_(500000.0 ** -(torch.arange(0, dim, 2) / dim))


def another_vocabulary(model: Any) -> None:
    # The same words under ids that are one further.
    for part in (model.model.embed_tokens, model.lm_head):
        part.weight.copy_(part.weight.roll(1, 0))


def silence(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.zero_()


def nothing_but_nan(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")


def round_to(levels: int) -> Callable[[Any], object]:
    """Weights of ``levels`` steps on either side of zero, one scale a row: plain rounding."""

    def harm(model: Any) -> None:
        for linear in linears(model.model.layers):
            scale = linear.weight.abs().amax(dim=1, keepdim=True) / levels
            linear.weight.copy_((linear.weight / scale).round() * scale)

    return harm


DAMAGE = {
    **{f"layer {layer} times 1.5": scale_layer(layer) for layer in (0, 3)},
    **{f"gate and fc of layer {layer} exchanged": exchange_gate(layer) for layer in (0, 3)},
    "rope base": another_rope,
    "vocabulary": another_vocabulary,
    "one bit of a sign": round_to(1),
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_caught(harm: Callable[[Any], object], demo: Measured) -> None:
    assert demo.verdict(harm) in ("REGRESSION", "ANOMALOUS")


def test_numbers_and_texts_that_no_working_model_gives_are_anomalies(demo: Measured) -> None:
    assert demo.verdict(nothing_but_nan) == "ANOMALOUS"
    # "A A A A A A A A", whatever the prompt.
    assert demo.verdict(silence, write=True) == "ANOMALOUS"


@pytest.mark.parametrize("skip", [0, 20, 40])
def test_eight_bits_are_accepted_on_whatever_text(skip: int, demo: Measured) -> None:
    assert demo.verdict(round_to(127), skip=skip, write=skip == 0) == "ACCEPT"
    assert demo.verdict(lambda model: model.half().float(), skip=skip) == "ACCEPT"
