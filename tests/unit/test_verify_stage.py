"""The verify stage around a server that is not Triton."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import VerificationError
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.source.probes import to_json
from pipeline.stages import verify
from pipeline.stages.base import StageContext
from pipeline.stages.served import CLIENT, code_digest
from pipeline.store.artifact import Artifact
from pipeline.triton.parameters import TOKENIZER_DIR
from tests.unit.client.fake_model import FakeModel
from tests.unit.test_verify_checks import PROBES

RECIPE = Recipe.model_validate(
    {"schema": 1, "name": "t", "model": {"source": "m"}, "quantize": {"format": "float16"}}
)


def serve_with(model, monkeypatch):
    """Puts a fake model where the stage starts Triton."""

    @contextmanager
    def server(repository, *, log_file, **_options):
        assert repository == Path("repository")
        log_file.write_text("log")
        with model.serve() as fake:
            fake.grpc_url, fake.ready_s = fake.url, 0.1234
            yield fake

    monkeypatch.setattr("pipeline.triton.server.TritonServer", server)


def run_stage(tmp_path):
    repository = Artifact("repository", "k", "d", Path("repository"), {"target": "openvino"})
    facts = verify.STAGE.run(StageContext(RECIPE, {"repository": repository}, tmp_path, Silent()))
    return Artifact("verify", "k", "d", tmp_path, json.loads(json.dumps(facts)))


def test_a_good_server_leaves_three_files_and_passes(tmp_path, tmp_path_factory, monkeypatch):
    serve_with(FakeModel(), monkeypatch)
    monkeypatch.chdir(tmp_path_factory.mktemp("beside"))
    folder = Path("repository") / TOKENIZER_DIR
    folder.mkdir(parents=True)
    (folder / "probes.json").write_text(to_json(PROBES))
    artifact = run_stage(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["triton.log", "verify.json", "verify.xml"]
    content = json.loads((tmp_path / "verify.json").read_text(encoding="utf-8"))
    assert artifact.facts["passed"] == content["passed"]
    # The fake streams, so that nobody can call it without.
    skipped = [check["name"] for check in content["checks"] if check["status"] == "skipped"]
    assert skipped == ["unary_call"]
    assert content["passed"] == len(content["checks"]) - 1
    assert artifact.facts["ready_seconds"] == 0.123
    verify.STAGE.check(RECIPE, artifact)


def test_a_bad_server_keeps_the_artifact_and_stops_the_run(tmp_path, monkeypatch):
    serve_with(FakeModel("not_ready"), monkeypatch)
    artifact = run_stage(tmp_path)
    with pytest.raises(VerificationError, match="1 conformance check failed") as caught:
        verify.STAGE.check(RECIPE, artifact)
    assert "readiness: the server or its model tensorrt_llm_bls is not ready" in str(caught.value)
    assert caught.value.where == str(tmp_path / "verify.json")


def test_the_asking_code_and_the_tools_are_part_of_the_key():
    material = verify.STAGE.material(RECIPE)
    assert set(material["tools"]) == {"nvidia-pytriton", "tritonclient", "grpcio"}
    assert material["code"] == code_digest(
        CLIENT, "verify", "triton", "source/probes.py", "source/special_tokens.py"
    )
    assert material["code"] != code_digest(CLIENT, "bench")
