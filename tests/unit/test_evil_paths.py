"""Paths that no command can use, for every option that takes a path and every path of a recipe."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.cli import main as program
from pipeline.errors import UsageError
from pipeline.recipe.docs import recipe_keys
from pipeline.recipe.file import load_recipe
from pipeline.targets import openvino  # noqa: F401  loaded before the clock runs

from ..conftest import PROJECT

PATIENCE_S = 60
Evil = Callable[[Path], str]


def _fifo(folder: Path) -> str:
    os.mkfifo(folder / "fifo.jsonl")
    return str(folder / "fifo.jsonl")


def _circle(folder: Path) -> str:
    (folder / "circle").symlink_to(folder / "circle")
    return str(folder / "circle")


def _folder(folder: Path) -> str:
    (folder / "folder.jsonl").mkdir()
    return str(folder / "folder.jsonl")


def _below_a_file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file" / "x.jsonl")


def _file(folder: Path) -> str:
    (folder / "plain.jsonl").write_bytes(b"\xff\xfe\x00{")
    return str(folder / "plain.jsonl")


# No command has a use for these.
IMPOSSIBLE: dict[str, tuple[Evil, str]] = {
    "a name of 5000 letters": (lambda _: "a" * 5000, "File name too long"),
    "a path of 5000 letters": (lambda _: "a/" * 2500, "File name too long"),
    "a pipe": (_fifo, "It is a pipe or a device"),
    "an endless device": (lambda _: "/dev/zero", "It is a pipe or a device"),
    "a circle of links": (_circle, "Too many levels of symbolic links"),
}
# Told by the same checks as others of these, so that no place need be tried with both each time.
ALIKE = ("a path of 5000 letters", "an endless device")
# Some option may want them; the others say so.
ODD: dict[str, Evil] = {
    "a folder": _folder,
    "something below a file": _below_a_file,
    "a file of no text": _file,
    # Regular and open to this user, also to root, and yet a read of its beginning fails.
    "a file that cannot be read": lambda _: "/proc/self/mem",
}
# What a command cannot do without; the model of the recipe is not there, so that nothing is run.
NEEDED = {
    "run": ["{recipe}"],
    "plan": ["{recipe}"],
    "compare": ["{recipe}"],
    "lm-eval": ["{recipe}", "--tasks", "arc_easy", "--model", "source"],
    "init": ["no/model-here"],
    "serve": ["{folder}/no-repository"],
    "sign": ["{folder}/no-repository", "--key", "{folder}/no-key"],
    "generate": ["--url", "127.0.0.1:1", "Hi"],
    "verify": ["--url", "127.0.0.1:1"],
    "bench": ["--url", "127.0.0.1:1"],
    "gateway": ["--url", "127.0.0.1:1", "--tokenizer", "{folder}"],
    "capacity": ["{folder}", "--ttft-ms", "100", "--itl-ms", "50", "--requests-per-second", "1"],
    "manifests": ["{folder}", "--kind", "kubernetes"],
    "store publish": ["{folder}", "--to", "{folder}/volume"],
}


Place = tuple[tuple[str, ...], Any]


def _places(group: Any, path: tuple[str, ...] = ()) -> Iterator[Place]:
    """Every parameter of every command that is annotated as a path, with the command's words."""
    for name, command in group.commands.items():
        words = (*path, name)
        if hasattr(command, "commands"):
            yield from _places(command, words)
        else:
            yield from (
                (words, parameter)
                for parameter in command.params
                if "Path" in str(parameter.type_descriptor.annotation)
            )


PLACES = list(_places(typer.main.get_command(program.app)))


def test_the_options_that_take_a_path_are_found() -> None:
    """Otherwise nothing below would be tried."""
    found = {(" ".join(words), option) for words, p in PLACES for option in p.opts}
    assert {
        ("run", "recipe"),
        ("run", "--engine"),
        ("plan", "--script"),
        ("generate", "--json-schema"),
        ("generate", "--tls-root"),
        ("verify", "--junit"),
        ("verify", "--prompts"),
        ("bench", "--repository"),
        ("init", "--text"),
        ("init", "--output"),
        ("store list", "--build-dir"),
        ("compare", "paths"),
    } <= found


def _line(words: tuple[str, ...], parameter: Any, evil: str, folder: Path) -> list[str]:
    needed = [
        word.format(recipe=folder / "recipe.yaml", folder=folder)
        for word in NEEDED.get(" ".join(words), [])
    ]
    option = next((name for name in parameter.opts if name.startswith("--")), None)
    if option is None:
        return [*words, evil, *needed[1:]]
    if option in needed:
        needed[needed.index(option) + 1] = evil
        return [*words, *needed]
    if option == "--repository":
        needed = needed[2:]  # in place of the --url
    elif option == "--trace":
        needed = needed[:-2]  # in place of the rate
    return [*words, *needed, option, evil]


def _run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """The command in this process, which takes a hundredth of the time; interrupted if it hangs."""
    monkeypatch.setattr(sys, "argv", ["trtllm-pipeline", *arguments])
    # The streams are pytest's here.
    monkeypatch.setattr(program, "guard_streams", lambda: None)
    monkeypatch.setattr(program, "discard_unwritten", lambda: None)
    kept = signal.getsignal(signal.SIGTERM)

    def hangs(_number: int, _frame: object) -> None:
        raise TimeoutError(f"{arguments} hangs")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE_S)
    began = time.monotonic()
    try:
        program.main()
    except SystemExit as done:
        code = done.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, kept)
    assert time.monotonic() - began < PATIENCE_S
    captured = capsys.readouterr()
    assert isinstance(code, int)
    return code, captured.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = (PROJECT / "configs" / "demo.yaml").read_text(encoding="utf-8")
    recipe = text.replace("../examples/tiny_llama/model", str(tmp_path / "no-model"))
    assert recipe != text
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return tmp_path


def _ids(place: Place) -> str:
    return f"{' '.join(place[0])} {place[1].opts[0]}"


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param([kind for kind in IMPOSSIBLE if kind not in ALIKE], id="each kind"),
        pytest.param(ALIKE, id="their like", marks=pytest.mark.proof),
    ],
)
@pytest.mark.parametrize("place", PLACES, ids=_ids)
def test_a_path_that_cannot_be_is_refused_at_once(
    place: Place,
    kinds: Sequence[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for make, why in (IMPOSSIBLE[kind] for kind in kinds):
        code, said = _run(_line(*place, make(folder), folder), monkeypatch, capsys)
        assert 2 <= code <= 6, said
        assert why in said
        assert "defect" not in said
        assert "Traceback" not in said
        assert len(said) < 2000, "the path itself fills the screen"
        assert said.startswith("error: ")
        assert said.count("\n") == 1, "more than a paragraph"


@pytest.mark.parametrize("place", PLACES, ids=_ids)
def test_a_path_to_something_else_ends_in_words(
    place: Place,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for make in ODD.values():
        code, said = _run(_line(*place, make(folder), folder), monkeypatch, capsys)
        assert code in (0, 2, 3, 4, 5, 6), said
        assert "defect" not in said
        assert "Traceback" not in said


PATH_KEYS = ("model.source", "quantize.calibration.text", "evaluate.text")


def test_the_paths_of_a_recipe_are_known() -> None:
    """Those above are keys; others that name files are held against the same rule by the reader."""
    assert set(PATH_KEYS) <= {key.name for key in recipe_keys()}


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_such_a_path_in_a_recipe_is_a_mistake_of_its_key(key: str, kind: str, folder: Path) -> None:
    make, why = IMPOSSIBLE[kind]
    with pytest.raises(UsageError, match=rf"{key} cannot be used: .*{why}") as caught:
        load_recipe(folder / "recipe.yaml", [f"{key}={make(folder)}"])
    assert len(str(caught.value)) < 2000


def test_a_null_character_in_a_recipe_is_a_mistake(folder: Path) -> None:
    for key in PATH_KEYS:
        with pytest.raises(UsageError, match=r"null|NUL"):
            load_recipe(folder / "recipe.yaml", [f'{key}="a\\0b"'])


def test_dev_null_may_swallow_a_log() -> None:
    from pipeline.cli.options import new_file

    assert new_file(Path(os.devnull)) == Path(os.devnull)
