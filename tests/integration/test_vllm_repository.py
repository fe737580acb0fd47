"""The repository of Triton's vLLM backend, loaded by the real server with a stand-in of it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("pytriton")
pytest.importorskip("torch")

from pipeline.triton.server import TritonServer
from tests.conftest import PROJECT
from tests.unit.vllm.support import export, write_model

BACKEND = PROJECT / "tests/doubles/vllm_backend/backend"


def test_triton_loads_it_and_answers_as_the_readme_asks(tmp_path: Path) -> None:
    ranks = {"compile": {"tensor_parallel": 2}, "quantize": {"group_size": 64}}
    output = export(write_model(tmp_path / "model"), tmp_path, **ranks)
    log = tmp_path / "log"
    with TritonServer(output / "triton", log_file=log, backends={"vllm": BACKEND}) as server:
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.http_port}/v2/models/vllm_model/generate",
            json.dumps({"text_input": "Once", "parameters": {"stream": False}}).encode(),
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            told = json.load(answer)
    assert "text_output" in told, told
    said = json.loads(told["text_output"])
    written = json.loads((output / "triton/vllm_model/1/model.json").read_text())
    assert said.pop("kind") == "MODEL", "vLLM itself takes the GPUs that it needs"
    assert said == written
    assert said["tensor_parallel_size"] == 2
