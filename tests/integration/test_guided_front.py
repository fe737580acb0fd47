"""Guided decoding through ``tensorrt_llm``'s model.py, called as Triton would call it."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.conftest import DEMO_MODEL
from tests.integration.engine_front_support import write_engine
from tests.unit.model_repo.fake_triton import Request, install, model_args

install()

import model_repo.tensorrt_llm.model as front  # noqa: E402 - needs install()

front.end_with_parent = lambda: None  # it would end the tests' own process

TOKENIZER = "preprocessing/1/tokenizer"
OUTPUTS = ["output_ids", "sequence_length"]
# Its grammar takes seconds to make.
SLOW = "(a{1,900}b){1,900}(c{1,900}d){1,900}(e{1,900}f){1,900}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    engine, tokenizer = root / "tensorrt_llm" / "1" / "engine", root / TOKENIZER
    engine.mkdir(parents=True)
    tokenizer.mkdir(parents=True)
    write_engine(DEMO_MODEL, engine)
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copyfile(DEMO_MODEL / name, tokenizer / name)
    return root


@pytest.fixture(scope="module")
def model(repository: Path) -> Iterator[front.TritonPythonModel]:
    interval = sys.getswitchinterval()
    made = front.TritonPythonModel()
    parameters = {
        "gpt_model_path": "tensorrt_llm/1/engine",
        "tokenizer_dir": TOKENIZER,
        "guided_decoding_backend": "xgrammar",
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "5",
    }
    made.initialize(model_args(repository, parameters))
    yield made
    made.finalize()
    sys.setswitchinterval(interval)


def request(*guides: str, request_id: str = "", tokens: int = 60, stop: bool = False) -> Request:
    rows = len(guides)
    tensors = {
        "input_ids": np.tile(np.arange(10, 30, dtype=np.int32), (rows, 1)),
        "input_lengths": np.full((rows, 1), 20, np.int32),
        "request_output_len": np.full((rows, 1), tokens, np.int32),
        "guided_decoding_guide_type": np.array([[b"regex"]] * rows, object),
        "guided_decoding_guide": np.array([[guide.encode()] for guide in guides], object),
    }
    if stop:
        tensors["stop"] = np.ones((rows, 1), bool)
    return Request(tensors, OUTPUTS, request_id)


def test_each_row_of_a_batch_has_its_own_guide(model: front.TritonPythonModel) -> None:
    guides = ["[0-9]{7}", "(yes|no)", "[A-Z]{3}-[a-z]{3}"]
    sent = request(*guides)
    model.execute([sent])
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    answers = [outputs["output_ids"].reshape(-1).tolist() for outputs in sent.sender.outputs()]
    texts = [tokenizer.decode(ids) for ids in answers]
    assert len(texts) == len(guides)
    matched = [[bool(re.fullmatch(guide, text)) for text in texts] for guide in guides]
    assert [sum(row) for row in matched] == [1, 1, 1]


def test_a_bad_guide_is_an_invalid_argument(model: front.TritonPythonModel) -> None:
    sent = request("[a-")
    model.execute([sent])
    assert re.search(r"cannot be followed as regex: .*Unclosed '\['", sent.sender.failure())


def test_a_stop_request_reaches_one_whose_guide_is_being_tried(
    model: front.TritonPythonModel,
) -> None:
    slow = request(SLOW, request_id="slow")
    model.execute([slow])
    started = time.monotonic()
    model.execute([request("x", request_id="slow", stop=True)])
    outputs = slow.sender.outputs()
    ended_after = time.monotonic() - started
    assert all(one["output_ids"].size == 0 for one in outputs)
    started = time.monotonic()
    whole = request(SLOW.replace("a", "g"), tokens=1)
    model.execute([whole])
    assert whole.sender.outputs()
    # Which takes as long to understand, on a machine that is as busy.
    assert ended_after < (time.monotonic() - started) / 2, "its guide was understood first"
