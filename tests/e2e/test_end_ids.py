"""A fine-tune that names its end in one file only, on the real server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from pipeline.serving import serving
from trtllm_client import Client

from ..conftest import DEMO_MODEL
from .conftest import Cli

END, PAD = 1, 2
PROMPT = "Once there was a gentle boy named Jack, and he lived by the sea."
TOKENS = 400


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, which ends a story with </s>, but only its tokenizer says so."""
    directory = tmp_path_factory.mktemp("fine") / "tune"
    shutil.copytree(DEMO_MODEL, directory)
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": PAD}))
    assert json.loads((directory / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
    return directory


def _story_by_transformers() -> tuple[str, int]:
    """The greedy story up to </s>, and its tokens."""
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    ids = tokenizer.encode(PROMPT).ids
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=END,
            pad_token_id=PAD,
        )  # fmt: skip
    new = output[0, len(ids) :].tolist()
    assert new[-1] == END
    return tokenizer.decode(new, skip_special_tokens=True), len(new)


def test_a_story_ends_where_the_tokenizer_says_it_does(
    fine_tune: Path, cli: Cli, tmp_path: Path
) -> None:
    source = ["--set", f"model.source={fine_tune}"]
    recipe = "configs/demo-float16.yaml"
    planned = cli("plan", recipe, "--build-dir", str(cli.build), *source).stdout
    assert "end ids: 2 <pad>  (generation_config.json, config.json)" in planned
    assert "         1 </s>  (tokenizer_config.json)" in planned
    unmeasured = ["--set", "name=tune", "--set", "evaluate=null", "--until", "repository"]
    done = json.loads(cli.run(recipe, *source, *unmeasured, "--json").stdout)
    repository = Path(done["deployed"]["repository"])
    path = repository / "preprocessing" / "1" / "tokenizer" / "generation_config.json"
    assert json.loads(path.read_text())["eos_token_id"] == [PAD, END]
    text, count = _story_by_transformers()
    assert count < TOKENS
    with serving(repository, tmp_path / "log") as server, Client(server.grpc_url) as client:
        answer = client.generate(PROMPT, max_tokens=TOKENS, return_log_probs=True)
        # The end id is the last token that it may have, and still it is none of the text's.
        short = client.stream(PROMPT, max_tokens=count, return_log_probs=True).completion()
        joined = client.generate(PROMPT, model="ensemble", max_tokens=count)
        unended = client.generate(PROMPT, max_tokens=count, end_id=PAD)
    for found in (answer, short):
        assert found.text == text
        assert found.finish_reason == "stop"
        assert found.num_output_tokens == count - 1
        assert found.output_log_probs is not None
        assert len(found.output_log_probs) == count - 1
        assert found.cum_log_probs == pytest.approx(sum(found.output_log_probs), abs=1e-3)
    assert joined.text == text
    # A request that names an end id has no other.
    assert (unended.num_output_tokens, unended.finish_reason) == (count, "length")


def test_plan_and_run_refuse_an_end_id_that_is_none(
    fine_tune: Path, cli: Cli, tmp_path: Path
) -> None:
    broken = shutil.copytree(fine_tune, tmp_path / "broken")
    path = broken / "generation_config.json"
    path.write_text('{"eos_token_id": [1, null]}')
    for command in ("plan", "run"):
        done = cli(
            command, "configs/demo-float16.yaml", "--build-dir", str(tmp_path / "build"),
            "--set", f"model.source={broken}", check=False,
        )  # fmt: skip
        assert done.returncode == 5, done.stdout
        said = " ".join(done.stderr.split())
        assert f"error: {path}: eos_token_id is [1, null]." in said
        assert "null is none" in said
