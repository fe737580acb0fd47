"""docs/sampling.md names every input that decides which tokens come out."""

from __future__ import annotations

import re

import pytest

from pipeline.triton.contract import BLS, ENGINE, ENSEMBLE, MODELS
from tests.conftest import PROJECT

TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (PROJECT / "docs" / "sampling.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| input")
]

# Inputs that ask for outputs, name the prompt, or choose another model, prompt or way of serving.
NOT_SAMPLING = re.compile(
    r"return_\w+|\w*input_ids|\w*input_lengths|text_input|decoder_text_input|add_special_tokens"
    r"|exclude_input_in_output|stop|stream|streaming|encoder_\w+|prompt_\w+|cross_attention_mask|skip_cross_attn_blocks"
    r"|mrope_\w+|lora_\w+|context_phase_params|retention_\w+"
)
DRAFTS = {"draft_input_ids"}


@pytest.mark.parametrize("model", [ENGINE, BLS, ENSEMBLE])
def test_every_sampling_input_has_a_row(model: str) -> None:
    named = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in TABLE)))
    inputs = {tensor.name for tensor in MODELS[model].inputs}
    sampling = {name for name in inputs if not NOT_SAMPLING.fullmatch(name)}
    sampling |= inputs & DRAFTS
    assert sampling - named == set()
    assert len(sampling) > 15


def test_no_row_names_what_no_model_has() -> None:
    named = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in TABLE)))
    inputs = {tensor.name for model in MODELS.values() for tensor in model.inputs}
    assert named - inputs == set()


def test_every_row_says_what_follows() -> None:
    assert len(TABLE) > 20
    for name, gpu, cpu, verdict in TABLE:
        assert gpu, name
        assert cpu, name
        assert re.match(r"same$|refused$|\*\*differs\*\* ", verdict), name
        assert ("refused" in cpu) >= (verdict == "refused"), name
