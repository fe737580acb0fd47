"""What changes for a recipe that goes from TensorRT engines to the LLM API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from pipeline.formats import FORMATS, FP8, either
from pipeline.recipe.schema import Recipe
from pipeline.targets.llmapi.rules import EXECUTED
from pipeline.targets.tensorrt.toolchain import CONTAINERS, TENSORRT_LLM

FILE_NAME = "MIGRATION.md"
Kind = Literal["lost", "gained", "same"]
_TITLES: dict[Kind, str] = {
    "lost": "Lost, or not as it was",
    "gained": "Gained",
    "same": "As before",
}


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        what: In a few words.
        detail: What it means for this recipe, as sentences.
    """

    kind: Kind
    what: str
    detail: str


def changes(recipe: Recipe) -> list[Change]:
    """Lists what a recipe loses, gains and keeps, the losses first.

    Args:
        recipe: One that the target's rules have passed.
    """
    return [*_lost(recipe), *_gained(recipe), *_same(recipe)]


def _lost(recipe: Recipe) -> Iterator[Change]:
    row = FORMATS[recipe.quantize.format]
    yield Change(
        "lost",
        "other kernels",
        "The texts of an engine are not repeated bit by bit: compare log-probabilities and "
        "evaluate's numbers, not texts.",
    )
    yield Change(
        "lost",
        "the start",
        "What trtllm-build did once is done at every start: the weights are laid out for the "
        "kernels, and these are tried out.",
    )
    if row.quant_algo == FP8:
        yield Change(
            "lost",
            "one scale of two",
            "gate_proj and up_proj are one linear there: the codes of the one with the smaller "
            "scale are rounded again to the larger one, by at most half a step of FP8.",
        )
    if recipe.compile.llmapi.sampler == "TorchSampler":
        yield Change(
            "lost",
            "penalties and seeds",
            "TorchSampler of 1.2 ignores them; the server refuses repetition_penalty, "
            "presence_penalty and frequency_penalty, and a seed of a sampled request.",
        )
    yield Change(
        "lost",
        "inputs that the front refuses",
        "Bad words, embedding bias, context and generation logits, guided decoding, LoRA "
        "adapters, draft tokens and lookahead decoding.",
    )
    yield Change(
        "lost",
        "queue times",
        "nv_llm_queue_time_ms is the wait in front of the LLM alone; how many wait inside it, "
        "nv_trt_llm_request_metrics has from the LLM itself.",
    )
    others = either(row for row in FORMATS.values() if row.quant_algo not in EXECUTED)
    yield Change(
        "lost",
        "other formats",
        f"{others} cannot be served, nor can an INT8 KV cache; what TensorRT Edge-LLM compiles of "
        "them, compile.target: edgellm says.",
    )


def _gained(recipe: Recipe) -> Iterator[Change]:
    row = FORMATS[recipe.quantize.format]
    yield Change(
        "gained",
        "no engine",
        f"Nothing is built: the same folder runs on {EXECUTED[row.quant_algo].words}, and is "
        "written without a GPU.",
    )
    yield Change(
        "gained",
        "a future",
        f"TensorRT-LLM {TENSORRT_LLM} is the last stable release with engines, and Triton "
        f"{CONTAINERS[-1].tag} the last container; the LLM API goes on.",
    )
    yield Change(
        "gained",
        "one folder for several programs",
        "model.yaml and the checkpoint are those of NVIDIA's own llmapi model and of trtllm-serve.",
    )


def _same(recipe: Recipe) -> Iterator[Change]:
    sizes = recipe.compile
    yield Change(
        "same",
        "the checkpoint",
        "The codes and scales that evaluate has measured, under Hugging Face's names.",
    )
    yield Change(
        "same",
        "the wire",
        "The five models with their tensors, and so every client, verify and bench; stop words, "
        "cancellation, counts of tokens and the families of metrics.",
    )
    yield Change(
        "same",
        "the sizes",
        f"max_batch_size {sizes.max_batch_size}, max_num_tokens {sizes.max_num_tokens}, "
        f"max_seq_len {sizes.max_seq_len}, {sizes.tensor_parallel} x {sizes.pipeline_parallel} "
        "ranks; max_input_len is held by the front.",
    )


def migration_lines(recipe: Recipe) -> list[str]:
    """Writes the report for a terminal."""
    lines = ["from TensorRT engines to the LLM API:"]
    marks = {"lost": "-", "gained": "+", "same": "="}
    return [*lines, *(f"  {marks[c.kind]} {c.what}: {c.detail}" for c in changes(recipe))]


def migration_values(recipe: Recipe) -> list[dict[str, str]]:
    """Returns the report as JSON values."""
    return [asdict(change) for change in changes(recipe)]


def migration_page(recipe: Recipe) -> str:
    """Writes the report as Markdown."""
    found = changes(recipe)
    lines = [
        f"# {recipe.name}: from TensorRT engines to the LLM API",
        "",
        f"Format {recipe.quantize.format}. Written with the repository by trtllm-pipeline.",
        "TensorRT-LLM itself has not been run on it here.",
        "",
    ]
    for kind, title in _TITLES.items():
        lines += [f"## {title}", ""]
        lines += [f"- **{c.what}**: {c.detail}" for c in found if c.kind == kind]
        lines.append("")
    return "\n".join(lines)
