"""The verify stage around a server that is not Triton."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest

from pipeline.errors import RecipeError, VerificationError
from pipeline.progress import Silent
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.recipe.verify import CheckName
from pipeline.running.planner import key_material
from pipeline.source.probes import to_json
from pipeline.source.texts import check_texts
from pipeline.stages import verify
from pipeline.stages.base import StageContext
from pipeline.stages.served import CLIENT, code_digest
from pipeline.store.artifact import Artifact
from pipeline.triton.parameters import TOKENIZER_DIR
from pipeline.verify import CHECKS
from tests.conftest import PROJECT
from tests.unit.client.fake_model import FakeModel
from tests.unit.test_verify_checks import PROBES

RECIPE = Recipe.model_validate(
    {"schema": 1, "name": "t", "model": {"source": "m"}, "quantize": {"format": "float16"}}
)

USUAL = [name for name, check in CHECKS.items() if not check.thorough]


def serve_with(model, monkeypatch):
    """Puts a fake model where the stage starts Triton."""

    @contextmanager
    def server(repository, *, log_file, **_options):
        assert repository == Path("repository")
        log_file.write_text("log")
        with model.serve() as fake:
            fake.ready_s = 0.1234
            yield fake

    monkeypatch.setattr("pipeline.triton.server.TritonServer", server)


def with_settings(**settings):
    return Recipe.model_validate({**RECIPE.model_dump(by_alias=True), "verify": settings})


def run_stage(tmp_path, recipe=RECIPE):
    repository = Artifact("repository", "k", "d", Path("repository"), {"target": "openvino"})
    facts = verify.STAGE.run(StageContext(recipe, {"repository": repository}, tmp_path, Silent()))
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


def test_a_recipe_chooses_checks_and_prompts_and_the_rest_is_never_passed(tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": " the dog"}\n{"prompt": " the boat"}\n')
    serve_with(FakeModel(), monkeypatch)
    recipe = with_settings(
        only=["max_tokens", "readiness", "log_probs"], skip=["log_probs"], prompts=str(prompts)
    )
    (tmp_path / "out").mkdir()
    artifact = run_stage(tmp_path / "out", recipe)
    assert artifact.facts["passed"] == 2
    assert artifact.facts["failed"] == 0
    assert artifact.facts["skipped"] == len(USUAL) - 2
    assert artifact.facts["prompts"] == "2 given"
    status = {
        check["name"]: (check["status"], check["reason"]) for check in artifact.facts["checks"]
    }
    assert list(status) == USUAL
    assert status.pop("readiness") == status.pop("max_tokens") == ("passed", None)
    assert set(status.values()) == {("skipped", verify.LEFT_OUT)}
    suite = ElementTree.parse(tmp_path / "out" / "verify.xml").getroot().find("testsuite")
    assert suite.get("skipped") == str(len(USUAL) - 2)
    assert suite.find("properties/property[@name='prompts']").get("value") == "2 given"
    verify.STAGE.check(recipe, artifact)


def test_what_is_checked_and_asked_is_part_of_the_key(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    settings = [
        {},
        {"only": ["border"]},
        {"skip": ["border"]},
        {"strict": True},
        {"tolerance": 0.5},
        {"prompts": str(prompts)},
    ]
    recipes = [with_settings(**one) for one in settings]
    keys = [json.dumps(key_material(verify.STAGE, recipe, {})) for recipe in recipes]
    assert len(set(keys)) == len(keys)
    moved = prompts.rename(tmp_path / "others.txt")
    again = key_material(verify.STAGE, with_settings(prompts=str(moved)), {})
    assert json.dumps(again) == keys[-1]
    moved.write_text("one\nthree\n")
    changed = key_material(verify.STAGE, with_settings(prompts=str(moved)), {})
    assert json.dumps(changed) != keys[-1]


def test_the_names_of_a_recipe_are_those_of_the_checks():
    assert get_args(CheckName) == tuple(USUAL)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("verify.skip=[stop_word]", r"verify\.skip\.0 is wrong.*Did you mean stop_words\?"),
        (
            "verify.only=[readiness, streams]",
            r"verify\.only\.1 is wrong\. 'streams' is not one of",
        ),
        ("verify.only=readiness", r"verify\.only is wrong"),
        ("verify={only: [border], skip: [border]}", "No check is left to run"),
        ("verify={strict: true, tolerance: 0.5}", "Strict and tolerance exclude each other"),
        ("verify.tolerance=0", r"verify\.tolerance"),
        ("verify.junit=x.xml", r"unknown key verify\.junit"),
    ],
)
def test_a_mistake_below_verify_is_told_when_the_recipe_is_read(settings, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(PROJECT / "configs" / "demo.yaml", [settings])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\n', "at least two different prompts"),
        ('{"prompt": "a"}\n{"messages": []}\n', r'p\.jsonl:2: "messages" is empty'),
        (
            '{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n',
            r"p\.jsonl:2: .*the model has no chat template",
        ),
        (
            '{"prompt": "a"}\n{"messages": [{"role": "assistant", "content": "b"}]}\n',
            r"p\.jsonl:2: the line has no prompt",
        ),
    ],
)
def test_prompts_of_a_recipe_are_read_before_any_work(tmp_path, content, words):
    (tmp_path / "p.jsonl").write_text(content)
    settings = [f"verify.prompts={tmp_path / 'p.jsonl'}"]
    recipe = load_recipe(PROJECT / "configs" / "demo.yaml", settings)
    with pytest.raises(RecipeError, match=rf"verify\.prompts.*{words}"):
        check_texts(recipe)


def test_the_asking_code_and_the_tools_are_part_of_the_key():
    material = verify.STAGE.material(RECIPE)
    assert set(material["tools"]) == {"nvidia-pytriton", "tritonclient", "grpcio"}
    assert material["code"] == code_digest(CLIENT, "verify", "triton", *verify.SOURCES)
    assert material["code"] != code_digest(CLIENT, "bench")
