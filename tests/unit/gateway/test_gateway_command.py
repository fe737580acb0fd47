"""The command ``gateway`` and ``serve --openai``: what they refuse before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.gateway import greeting
from pipeline.cli.main import Invocation, _invoke
from pipeline.errors import UsageError
from pipeline.gateway.model import open_model
from pipeline.gateway.opening import keys_of

from ...conftest import DEMO_MODEL

KEY = "k" * 32


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer\.json") as caught:
        open_model(tmp_path)
    assert "build/NAME" in str(caught.value)


def test_a_tokenizer_that_was_cut_off_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(UsageError, match="the tokenizer cannot be read"):
        open_model(tmp_path, context_length=8)


def test_a_tokenizer_alone_does_not_say_how_long_a_text_may_be() -> None:
    with pytest.raises(UsageError, match="how long a text") as caught:
        open_model(DEMO_MODEL)
    assert "--context-length" in str(caught.value)
    model = open_model(DEMO_MODEL, context_length=100)
    assert (model.name, model.limits.sequence, model.limits.prompt) == ("model", 100, 99)


def test_a_form_of_tool_calls_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="no form 'xml'") as caught:
        open_model(DEMO_MODEL, context_length=100, tool_calls="xml")
    assert "hermes" in str(caught.value)


def test_several_keys_are_read_and_none_is_repeated() -> None:
    other = "l" * 20
    assert keys_of({}, None) == ()
    assert keys_of({"A": KEY}, "A") == (KEY,)
    assert keys_of({"A": f"{KEY}\n{other} "}, "A") == (KEY, other)
    for value in ("", "short", f"{KEY} short", f"{KEY} caf\u00e9{'x' * 20}"):
        with pytest.raises(UsageError, match="holds no key") as caught:
            keys_of({"A": value}, "A")
        assert KEY not in str(caught.value)
        assert "short" not in str(caught.value)
    with pytest.raises(UsageError, match="not in the environment"):
        keys_of({}, "A")


def test_what_is_shown_to_try_has_no_key_in_it() -> None:
    assert "curl" in greeting("http://h:1", "demo", chats=False, key=False)
    assert "chat/completions" in greeting("http://h:1", "demo", chats=True, key=False)
    assert "curl" not in greeting("http://h:1", "demo", chats=True, key=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--openai", "70000"], "--openai must be between 0 and 65535"),
        (["--openai", "8001"], "--openai and --grpc-port are the same: 8001"),
        (["--openai", "9000", "--print", "compose"], "--openai does not go with --print compose"),
        (["--openai", "0", "--print", "systemd"], "needs the number of the port"),
    ],
)
def test_serve_refuses_a_gateway_that_could_not_be(
    options: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        _invoke(["serve", str(tmp_path), *options], Invocation())
