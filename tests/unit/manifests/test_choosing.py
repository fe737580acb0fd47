"""Values that are wrong are refused with their place and a tip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.cli.invocation import Invocation
from pipeline.cli.main import app
from pipeline.errors import UsageError
from pipeline.manifests.choosing import read_values
from pipeline.manifests.kinds import KINDS, kind_of, writer_of
from pipeline.manifests.values import PATTERNS, Values, documented
from pipeline.recipe.section import Section, section_of
from pipeline.recipe.tree import named_fields

from .support import deployed


@pytest.mark.parametrize(
    ("override", "tip"),
    [
        ("replica=3", "Did you mean replicas?"),
        ("gateway.replcas=3", "Did you mean gateway.replicas?"),
        ("storageClass=nfs", "Did you mean repository.storageClass?"),
        ("repository.storage_class=nfs", "Did you mean repository.storageClass?"),
        ("gpu.model=L4", "Known here: product, perNode, runtimeClass"),
    ],
)
def test_an_unknown_name_is_refused_with_a_tip(override: str, tip: str) -> None:
    with pytest.raises(UsageError, match="there is no value") as refused:
        read_values(None, [override], {})
    assert tip in str(refused.value)
    assert f"--set {override}" in str(refused.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("replicas=many", "'many' is not allowed: input should be a valid integer"),
        ("replicas=0", "0 is not allowed"),
        ("replicas=true", "True is not allowed"),
        ("replicas=2147483648", "2147483648 is not allowed"),
        ("monitoring.pricePerHour=.inf", "input should be a finite number"),
        ("name=Not_A_Name", "'Not_A_Name' is not up to 40 lower-case letters"),
        ("image=two words", "'two words' is not a name such as registry/path/name:tag"),
        ("repository.accessMode=ReadOnlyMany", "'ReadWriteMany' or 'ReadWriteOnce'"),
        ("resources.memory=lots", "'lots' is not a number with or without a unit"),
        ('canary.prompt="a\\"b"', "is not one line without quotes"),
        ("canary=x", "'x' stands where keys of their own belong"),
        ("nodeSelector={a: 1}", "1 is not text. Put it in quotes"),
        ("replicas", "not an assignment"),
        ("replicas=[", "the value is not valid YAML"),
        ("replicas.more=1", "replicas is wrong"),
    ],
)
def test_a_wrong_value_is_refused(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"wrong|not an assignment|not valid YAML") as refused:
        read_values(None, [override], {})
    assert said in str(refused.value)


def test_all_mistakes_of_a_file_are_told_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("replica: 2\ngateway:\n  replicas: -1\n")
    with pytest.raises(UsageError, match="2 mistakes") as refused:
        read_values(path, [], {})
    places = [mistake.where for mistake in refused.value.mistakes]
    assert sorted(map(str, places)) == [f"{path}:1:1", f"{path}:3:3"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("a: [", "is not valid YAML"), ("- a\n", "is not a mapping"), ("\xff", "is not UTF-8")],
)
def test_a_file_that_is_none_is_refused(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=why):
        read_values(path, [], {})
    with pytest.raises(UsageError, match="cannot be read"):
        read_values(tmp_path / "none.yaml", [], {})


def test_options_win_over_set_and_set_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("replicas: 2\nnamespace: one\ngateway: {replicas: 7}\n")
    values = read_values(path, ["replicas=3", "namespace=two"], {"namespace": "three"})
    assert (values.replicas, values.namespace, values.gateway.replicas) == (3, "three", 7)


def test_every_value_is_explained() -> None:
    def walk(section: type[Section]) -> None:
        assert documented(section).keys() == named_fields(section).keys(), section.__name__
        for field in named_fields(section).values():
            if inner := section_of(field):
                walk(inner)

    walk(Values)


def test_every_kind_has_a_writer() -> None:
    for name, kind in KINDS.items():
        assert callable(writer_of(name))
        assert kind.sentence.endswith(".")
    with pytest.raises(UsageError, match="there is no kind kubernets") as refused:
        kind_of("kubernets")
    assert "Did you mean kubernetes?" in str(refused.value)


def test_each_pattern_is_said_in_words() -> None:
    asked = set(_patterns(Values.model_json_schema()))
    assert asked == set(PATTERNS)


def _patterns(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        for inner in node.values():
            yield from _patterns(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _patterns(inner)


def test_choices_for_gpus_are_refused_for_the_cpu(builds: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="are for engines of a GPU"):
        deployed(builds["cpu"], "gpu.product=NVIDIA-L40S")


def test_a_folder_without_a_kind_is_not_taken_for_a_list(
    builds: dict[str, Path], tmp_path: Path
) -> None:
    command = get_command(app)
    with pytest.raises(UsageError, match="--output needs the kind of what is to be written"):
        command.main(
            ["manifests", str(builds["cpu"]), "--output", str(tmp_path / "out")],
            obj=Invocation(),
            standalone_mode=False,
        )
