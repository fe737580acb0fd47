"""Chats of the command line: one turn, and a conversation that is typed into a real terminal."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.answers import Answer, Asking
from pipeline.cli.chat import ChatOptions
from pipeline.triton.contract import ENGINE, ENSEMBLE, PREPROCESSING
from trtllm_client import Client, Stream

from ..conftest import PROJECT
from .client.fake_triton import FakeTriton, empty_final, piece, refusal
from .client.test_chat import PLAIN_TEMPLATE
from .test_cli_server import _cli, _emoji

CTRL_C, CTRL_D, LEFT = "\x03", "\x04", "\x1b[D"
# What a shell does for a command it starts: the terminal is its own, and Ctrl-C reaches it.
START = (
    "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from pipeline.cli.main import main; main()"
)
READY = "> "


@contextmanager
def saying_its_template(answer: Any, template: str = PLAIN_TEMPLATE) -> Iterator[FakeTriton]:
    with FakeTriton(answer) as server:
        server.parameters_of[PREPROCESSING] = {"chat_template": template}
        yield server


def three_words(asked: Any, _context: Any) -> Iterator[Any]:
    """Numbered, so that one answer can be told from the next; three tokens."""
    number = asked.prompt.count("<|user|>")
    for place, word in enumerate(("Answer", f" {number}", "!"), 1):
        yield piece(word, final=place == 3, num_input_tokens=7, num_output_tokens=1)


class Terminal:
    """A terminal that ``generate --chat`` runs in."""

    def __init__(self, server: FakeTriton, *options: str) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-c", START, "generate", "--chat", "--url", server.url]
        self._running = subprocess.Popen(
            [*command, *options],
            cwd=PROJECT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "dumb", "INPUTRC": os.devnull},
            start_new_session=True,
        )
        os.close(theirs)
        self._seen = ""
        self._decoded = codecs.getincrementaldecoder("utf-8")()

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def say(self, line: str) -> str:
        """Types a line, and returns what is printed until the next is asked for."""
        self.type(f"{line}\n")
        return self.read(f"\n{READY}").partition("\n")[2]

    def read(self, until: str) -> str:
        """What is printed up to a text, and with it."""
        give_up_at = time.monotonic() + 60
        while until not in self._seen:
            wait = give_up_at - time.monotonic()
            assert select.select([self._ours], [], [], max(wait, 0))[0], repr(self._seen)
            more = self._decoded.decode(os.read(self._ours, 4096)).replace("\r\n", "\n")
            self._seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", more)
        told, found, self._seen = self._seen.partition(until)
        return told + found

    def kill(self, number: signal.Signals) -> None:
        self._running.send_signal(number)

    def left(self) -> int:
        """The exit code, once the command has ended."""
        return self._running.wait(60)

    def __enter__(self) -> Terminal:
        try:
            self.read(READY)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._running.kill()
        self._running.wait()
        os.close(self._ours)


def test_a_conversation_has_what_was_said_before() -> None:
    with (
        saying_its_template(three_words) as server,
        Terminal(server, "--system", "Be brief", "--max-tokens", "9") as terminal,
    ):
        assert terminal.say("Hé") == f"Answer 1!\n{READY}"
        assert terminal.say("  and then?") == f"Answer 2!\n{READY}"
        terminal.say("")
        terminal.type(CTRL_D)
        assert terminal.left() == 0
    assert [asked.prompt for asked in server.asked] == [
        "<|system|>Be brief<|user|>Hé<|assistant|>",
        "<|system|>Be brief<|user|>Hé<|assistant|>Answer 1!<|user|>and then?<|assistant|>",
    ]
    assert [asked.one("max_tokens") for asked in server.asked] == [9, 9]


def test_commands_of_a_conversation() -> None:
    with saying_its_template(three_words) as server, Terminal(server) as terminal:
        terminal.say("one")
        assert "/clear" in terminal.say("/help")
        assert "error: there is no command /bye; /help" in terminal.say("/bye")
        terminal.say("/system Answer in rhyme")
        terminal.say(" /two")
        terminal.say("/clear")
        terminal.say("three")
        terminal.say("/system")
        terminal.say("four")
        terminal.type("/exit\n")
        assert terminal.left() == 0
    assert [asked.prompt for asked in server.asked] == [
        "<|user|>one<|assistant|>",
        "<|system|>Answer in rhyme<|user|>one<|assistant|>Answer 1!<|user|>/two<|assistant|>",
        "<|system|>Answer in rhyme<|user|>three<|assistant|>",
        "<|user|>three<|assistant|>Answer 1!<|user|>four<|assistant|>",
    ]


def test_a_line_can_be_edited() -> None:
    pytest.importorskip("readline")
    with saying_its_template(three_words) as server, Terminal(server) as terminal:
        terminal.say(f"helo{LEFT}l")
    assert [asked.prompt for asked in server.asked] == ["<|user|>hello<|assistant|>"]


def test_ctrl_c_stops_an_answer_and_leaves_at_the_prompt() -> None:
    def answer(asked: Any, context: Any) -> Iterator[Any]:
        if "slow" not in asked.prompt.rpartition("<|user|>")[2]:
            yield from three_words(asked, context)
            return
        if "silent" not in asked.prompt:
            yield piece("Well")
        while context.is_active():
            time.sleep(0.01)

    with saying_its_template(answer) as server, Terminal(server) as terminal:
        terminal.type("slow\n")
        terminal.read("Well")
        terminal.type(CTRL_C)
        assert "what has come is kept" in terminal.read(f"\n{READY}")
        assert server.cancelled.wait(30)
        server.cancelled.clear()
        terminal.type("slow and silent\n")
        terminal.read("\n")
        while len(server.asked) < 2:
            time.sleep(0.01)
        terminal.type(CTRL_C)
        assert "the message was taken back" in terminal.read(f"\n{READY}")
        assert server.cancelled.wait(30)
        assert terminal.say("quick") == f"Answer 2!\n{READY}"
        terminal.type(CTRL_C)
        assert terminal.left() == 0
    assert server.asked[-1].prompt == ("<|user|>slow<|assistant|>Well<|user|>quick<|assistant|>")


def test_ctrl_c_tells_the_engine_behind_an_ensemble() -> None:
    """Triton tells it nothing of a stream that was closed."""

    def answer(asked: Any, context: Any) -> Iterator[Any]:
        if asked.one("stop"):
            yield empty_final()
            return
        yield piece("Well")
        while context.is_active():
            time.sleep(0.01)

    with (
        saying_its_template(answer) as server,
        Terminal(server, "--model", ENSEMBLE) as terminal,
    ):
        terminal.type("Hi\n")
        terminal.read("Well")
        terminal.type(CTRL_C)
        terminal.read(f"\n{READY}")
    chat, stop = server.asked
    assert (chat.model, stop.model, stop.id) == (ENSEMBLE, ENGINE, chat.id)


def test_an_interrupt_finds_the_main_thread_outside_of_grpc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Raised in the middle of it, it leaves a lock held for which everything else waits."""
    readers: set[threading.Thread] = set()
    read = Stream.__next__

    def noted(stream: Stream) -> Any:
        readers.add(threading.current_thread())
        return read(stream)

    monkeypatch.setattr(Stream, "__next__", noted)
    shown: list[str] = []
    with saying_its_template(three_words) as server, Client(server.url) as client:
        asking = Asking(client, {"max_tokens": 9})
        asking.ask([{"role": "user", "content": "Hi"}], Answer(), shown.append)
        asking.ask("Hi", Answer(), shown.append)
    assert "".join(shown) == "Answer 1!Answer 0!"
    assert readers
    assert threading.main_thread() not in readers


TOO_LONG = "text_input has 9 tokens; the longest prompt may have 8 (max_input_len)"


def test_a_conversation_that_no_longer_fits_goes_on_without_its_last_message() -> None:
    def answer(asked: Any, context: Any) -> Iterator[Any]:
        if asked.prompt.count("<|user|>") > 1:
            yield refusal(TOO_LONG)
        else:
            yield from three_words(asked, context)

    with saying_its_template(answer) as server, Terminal(server) as terminal:
        terminal.say("one")
        told = " ".join(terminal.say("two").split())
        assert f"the server refused: {TOO_LONG}." in told
        assert "the message was taken back; /clear makes room" in told
        terminal.say("three")
        terminal.say("/clear")
        assert terminal.say("four") == f"Answer 1!\n{READY}"
    assert [asked.prompt.rpartition("<|user|>")[0] for asked in server.asked] == [
        "",
        "<|user|>one<|assistant|>Answer 1!",
        "<|user|>one<|assistant|>Answer 1!",
        "",
    ]


def test_a_template_that_refuses_a_message_is_heard() -> None:
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
    template = f"{no_system}{{% endif %}}{PLAIN_TEMPLATE}"
    with saying_its_template(three_words, template) as server, Terminal(server) as terminal:
        terminal.say("/system x")
        told = " ".join(terminal.say("one").split())
        assert "the chat template refuses these messages. No system role" in told
        terminal.say("/system")
        assert terminal.say("one") == f"Answer 1!\n{READY}"


def test_control_characters_of_an_answer_are_shown_and_not_obeyed() -> None:
    text = "a\x1b]52;c;aGk=\x07b\x1b[2J\rc\x9bA\x7f\td\ne"

    def answer(_asked: Any, _context: Any) -> Iterator[Any]:
        yield piece(text, final=True)

    with saying_its_template(answer) as server:
        with Terminal(server) as terminal:
            assert terminal.say("Hi") == (
                "a\u241b]52;c;aGk=\u2407b\u241b[2J\u240dc\ufffdA\u2421\td\ne\n" + READY
            )
        # Nobody's terminal is moved by what goes into a file.
        piped = _cli("generate", "--url", server.url, "--chat", "Hi")
    assert piped.stdout.decode() == text + "\n"


def test_an_answer_that_was_cut_says_so() -> None:
    with saying_its_template(three_words) as server, Terminal(server, "--max-tokens", "3") as typed:
        assert "note: the answer was cut at --max-tokens 3" in typed.say("Hi")


def test_a_signal_to_end_ends_a_conversation() -> None:
    def answer(_asked: Any, context: Any) -> Iterator[Any]:
        yield piece("Well")
        while context.is_active():
            time.sleep(0.01)

    with saying_its_template(answer) as server, Terminal(server) as terminal:
        terminal.type("Hi\n")
        terminal.read("Well")
        terminal.kill(signal.SIGTERM)
        assert terminal.left() == 143
        assert server.cancelled.wait(30)


def test_one_turn_is_one_document() -> None:
    with saying_its_template(three_words) as server:
        done = _cli(
            "generate", "--url", server.url, "--chat", "--system", "Be brief", "Hi", "--json"
        )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    seconds, first = document.pop("seconds"), document.pop("time_to_first_token_ms")
    assert 0 < first <= (seconds + 0.001) * 1000
    assert document == {
        "text": "Answer 1!",
        "finish_reason": "stop",
        "num_input_tokens": 7,
        "num_output_tokens": 3,
        "pieces": 3,
    }
    assert server.asked[0].prompt == "<|system|>Be brief<|user|>Hi<|assistant|>"
    assert server.asked[0].one("max_tokens") == 128


@pytest.mark.parametrize("prompt", [(), ("-",)], ids=["nothing", "dash"])
def test_what_is_piped_into_a_chat_is_one_message(prompt: tuple[str, ...]) -> None:
    with saying_its_template(three_words) as server:
        done = _cli("generate", "--url", server.url, "--chat", *prompt, given="Où ?\n".encode())
        failed = _cli("generate", "--url", server.url, "--chat", *prompt, given=b"caf\xe9")
    assert (done.returncode, done.stdout) == (0, b"Answer 1!\n")
    assert [asked.prompt for asked in server.asked] == ["<|user|>Où ?<|assistant|>"]
    assert failed.returncode == 2
    assert failed.stderr.startswith(b"error: prompt is not valid UTF-8")


def test_the_first_wait_is_that_for_the_first_piece() -> None:
    pause = 1.0

    def answer(_asked: Any, _context: Any) -> Iterator[Any]:
        yield piece("Once")
        time.sleep(pause)
        yield piece(" upon", final=True)

    with saying_its_template(answer) as server:
        done = json.loads(_cli("generate", "--url", server.url, "Hi", "--json").stdout)
    # A busy machine sees the first piece late, and so less of the pause behind it.
    assert done["seconds"] - done["time_to_first_token_ms"] / 1000 >= pause / 2
    assert (done["num_input_tokens"], done["finish_reason"]) == (None, None)


def test_variables_of_the_template_are_json_or_text() -> None:
    template = "{{ [flag, name, messages[0].content] | tojson }}"
    with saying_its_template(three_words, template) as server:
        options = ("--template-variable", "flag=false", "--template-variable", "name=low=1")
        _cli("generate", "--url", server.url, "--chat", "Hi", *options)
    assert [json.loads(asked.prompt) for asked in server.asked] == [[False, "low=1", "Hi"]]


@pytest.mark.parametrize("value", ["[" * 50_000, "NaN", "9" * 5000])
def test_a_variable_that_is_no_usable_json_is_text(value: str) -> None:
    options = ChatOptions(chat=True, template_variable=[f"name={value}"])
    assert options.variables == {"name": value}


def test_a_folder_gives_the_template_that_a_server_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("[{{ messages[0].content }}]")
    with FakeTriton(_emoji) as server:
        failed = _cli("generate", "--url", server.url, "--chat", "Hi")
        server.restricted.add("ModelConfig")
        done = _cli("generate", "--url", server.url, "--chat", "Hi", "--tokenizer", str(tmp_path))
    assert failed.returncode == 2
    assert b"the server does not say the chat template" in failed.stderr
    assert failed.stderr.endswith(b"which has the template: --tokenizer DIR.\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert [asked.prompt for asked in server.asked] == ["[Hi]"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "missing argument 'PROMPT'"),
        (("--system", "x", "Hi"), "--system says something of a chat"),
        (("--tokenizer", "x", "Hi"), "--tokenizer says something of a chat"),
        (("--template-variable", "a=1", "Hi"), "--template-variable says something of a chat"),
        (("--chat", "--template-variable", "a", "Hi"), "--template-variable needs NAME=VALUE"),
        (("--chat", "--tokenizer", "no/such", "Hi"), "the model has no chat template"),
        (("--chat", "--top-p", "2", "Hi"), "top_p must be between 0 and 1"),
    ],
)
def test_mistakes_are_told_before_a_server_is_asked(arguments: tuple[str, ...], said: str) -> None:
    with FakeTriton(_emoji) as server:
        failed = _cli("generate", "--url", server.url, *arguments)
    assert failed.returncode == 2
    assert said in failed.stderr.decode()
    assert server.asked == []
    assert server.configs_told == []


def test_a_conversation_cannot_be_a_document() -> None:
    with saying_its_template(three_words) as server:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "pipeline", "generate", "--chat", "--url", server.url]
        done = subprocess.run(
            command, cwd=PROJECT, stdin=theirs, capture_output=True, timeout=60, check=False
        )
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 2
    assert b"a conversation needs a terminal, and cannot be JSON" in done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--temperature", "1.5"), True),
        (("--temperature", "0"), False),
        (("--temperature", "1.5", "--top-k", "5"), False),
        (("--temperature", "1.5", "--top-p", "0.9"), False),
    ],
)
def test_a_temperature_that_changes_nothing_says_so(options: tuple[str, ...], told: bool) -> None:
    with FakeTriton(_emoji) as server:
        done = _cli("generate", "--url", server.url, "Hi", *options)
    assert done.returncode == 0
    assert (b"without --top-k or --top-p changes nothing" in done.stderr) is told
