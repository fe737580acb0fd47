"""Texts that tell tokenizers apart, with the ids and texts that the model's own tokenizer gives.

They are compared with what is served twice: when the repository is written, through the files that
Triton will run, and by ``verify``, over the wire. They travel with the repository.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline.errors import RepositoryError, UsageError
from pipeline.reading.json_text import read_json
from pipeline.source.special_tokens import tokens_in_front, without_second
from pipeline.source.tokenizer import CONFIG, TOKENIZER, HuggingFaceTokenizer, open_tokenizer
from pipeline.triton.sources import load_module
from trtllm_client import ChatTemplate, InvalidRequest

FILE_NAME = "probes.json"
# Of a repository, as pipeline.triton.parameters.TOKENIZER_DIR, which imports more than this needs.
TOKENIZER_FOLDER = "preprocessing/1/tokenizer"
OWN_FOLDER = "tokenizer"
"""In the repository of an engine that has a server of its own."""

TEXTS = (
    "Once upon a time, there was a cat.",
    "x",
    " ",
    "   ",
    " leading",
    "   three leading",
    "trailing ",
    "trailing   ",
    "two  three   four    spaces",
    "\n",
    "\n\n",
    "a\nb\r\nc\rd",
    "a \n b\n\n\n c",
    "\t",
    "\ttab\t\ttwo",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, zero\u200bwidth, line\u2028end",
    "0 1 12 123 1234 12345 3.14159 1,000,000 2026-11-28 0xff",
    "\u0663\u0664 \u096a\u096b \u2163 \u00bd \u00b2",
    "don't we'll I'm they've he'd she's DON'T \u2019s 'tis",
    "Hello , world ! Is this ' it ' ? do n't . x != y",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "def f(x):\n    return x ** 2  # squared\n\n\tif (a&&b) { c->d; }",
    "https://example.com/a_b?c=d&e=%20#f",
    '{"key": ["value", 1, null]}',
    "CamelCase snake_case SCREAMING kebab-case",
    "na\u00efve caf\u00e9 Zo\u00eb stra\u00dfe \u0141\u00f3d\u017a",
    # The same letters composed and decomposed, and marks that no letter composes with.
    "\u00e9 e\u0301 \u1e69 s\u0323\u0307 \u212b \u00c5 A\u030a",
    "q\u0307\u0323 z\u0351\u0351\u0351",
    "\ufb01ne \uff21\uff22\uff23 \u2460 \u33a5",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u200f!",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\U00020000\U0002a6d6",
    "\U0001f600 \U0001f600\U0001f600",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea",
    "\U0001f926\U0001f3fd\u200d\u2642\ufe0f 1\ufe0f\u20e3",
    "\u2581 a\u2581b \u0120 \u010a <0x0A> ##ing",
    "\ufffd \ufeff",
    "a\u0000b\u0001\u0007\u001b[0m\u007f\u0085",
    "<s> </s> <unk> <pad> <|endoftext|> <|im_start|> [INST]",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Caf\u00e9  \u4f60\u597d\n\n\t\U0001f600 42% of   it",
)
AUTO = "auto"
CHAT = [{"role": "user", "content": "Tell me a short story about a cat."}]
# A template may print the date, and the same inputs are to give the same bytes.
A_DAY = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Probe:
    """One text and what the model's own tokenizer makes of it.

    Attributes:
        text: What is tokenized.
        ids: Its token ids, special tokens included; at least one.
        plain: Its token ids without what the tokenizer puts around it; may be empty.
        decoded: The text of those ids without special tokens, and with every space that they hold.
    """

    text: str
    ids: tuple[int, ...]
    plain: tuple[int, ...]
    decoded: str


@dataclass(frozen=True)
class Probes:
    """All of them.

    Attributes:
        items: In a fixed order.
        cleans_up: Whether transformers 4 would take spaces out of the texts, as in " ." and " 's".
            Its successor does not where it spoils the text, and a stream of pieces cannot.
        without_chat: Why there is no output of the chat template among them; None where there is.
        in_front: The ids that the tokenizer puts in front of every text.
        chat: The output of the chat template; empty where there is none.
    """

    items: tuple[Probe, ...]
    cleans_up: bool
    without_chat: str | None
    in_front: tuple[int, ...] = ()
    chat: str = ""

    def ids_of(self, probe: Probe, added: bool | str) -> tuple[int, ...]:
        """Returns the ids that a server gives a text of these.

        Args:
            probe: One of the items.
            added: Its setting ``add_special_tokens``: True, False or ``auto``.
        """
        if added == AUTO:
            return without_second(probe.ids, probe.plain, self.in_front)
        return probe.ids if added else probe.plain


def make_probes(tokenizer: HuggingFaceTokenizer, texts: Iterable[str] = TEXTS) -> Probes:
    """Records what a tokenizer gives for texts, added tokens and its chat template's output.

    Args:
        tokenizer: As :func:`pipeline.source.tokenizer.open_tokenizer` returns it.
        texts: The texts.
    """
    chat, without_chat = _chat(tokenizer)
    items = []
    for text in dict.fromkeys((*texts, *_around_added_tokens(tokenizer), *chat)):
        ids = tokenizer.encode(text)
        if ids:  # a text that the normalizer drops altogether is no prompt
            plain = tokenizer.encode(text, add_special_tokens=False)
            items.append(Probe(text, tuple(ids), tuple(plain), exact_text(tokenizer, ids)))
    return Probes(
        tuple(items),
        bool(tokenizer.clean_up_tokenization_spaces),
        without_chat,
        tokens_in_front(tokenizer),
        chat[0] if chat else "",
    )


def exact_text(tokenizer: HuggingFaceTokenizer, ids: Sequence[int]) -> str:
    """Decodes ids without special tokens, and with every space that the ids hold.

    transformers 4 takes spaces out of it for tokenizers whose file says so, Llama 3's among them:
    ``x != y`` becomes ``x!= y``. transformers 5 leaves them in for these (its ``_decode``, and pull
    request 44914, which calls the setting a fault of the files).

    Args:
        tokenizer: Any.
        ids: Token ids.
    """
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def cleaned_up(text: str) -> str:
    """Takes spaces out of a text as transformers 4 does, by its table of replacements."""
    for found in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(found, found.strip())
    return text


def to_json(probes: Probes) -> str:
    """Writes the text of ``probes.json``; ASCII, since some probes are control characters."""
    return f"{json.dumps(asdict(probes), indent=1)}\n"


def read_probes(path: Path) -> Probes:
    """Reads ``probes.json``.

    Raises:
        UsageError: There is no such file, or it is damaged.
    """
    try:
        content = read_json(path)
        items = tuple(
            Probe(
                str(item["text"]),
                tuple(map(int, item["ids"])),
                # Repositories from before there was the setting have it true.
                tuple(map(int, item.get("plain", item["ids"]))),
                str(item["decoded"]),
            )
            for item in content["items"]
        )
        return Probes(
            items,
            bool(content["cleans_up"]),
            content["without_chat"],
            tuple(map(int, content.get("in_front", ()))),
            str(content.get("chat", "")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "the probe texts cannot be read",
            where=str(path),
            why=str(error),
            fix="Build the repository again with trtllm-pipeline run",
        ) from error


def known_probes(directory: Path) -> Probes | None:
    """Reads the probes that travel with a repository; None where there are none.

    Args:
        directory: A repository, or its tokenizer's folder.

    Raises:
        UsageError: They are damaged.
    """
    for folder in (directory / TOKENIZER_FOLDER, directory / OWN_FOLDER, directory):
        if (folder / FILE_NAME).is_file():
            return read_probes(folder / FILE_NAME)
    return None


def find_probes(directory: Path) -> Probes:
    """Reads a repository's probes, or makes them of the tokenizer in a model directory.

    Args:
        directory: A repository, its tokenizer's folder, or a Hugging Face model or tokenizer.

    Raises:
        UsageError: It holds neither, or damaged probes.
        SourceError: The tokenizer cannot be loaded.
        MissingDependencyError: It is a model directory, and transformers is not installed.
    """
    if (found := known_probes(directory)) is not None:
        return found
    if not any((directory / name).is_file() for name in (TOKENIZER, CONFIG)):
        raise UsageError(
            "this is neither a repository with probe texts nor a tokenizer's folder",
            where=str(directory),
            fix=f"Name a repository that the pipeline built, or a directory with {TOKENIZER}",
        )
    return make_probes(open_tokenizer(directory))


def check_served(
    probes: Probes, tokenizer_dir: Path, models: Path, added: bool | str = AUTO
) -> None:
    """Compares the probes with what Triton's models will make of a tokenizer's folder.

    Args:
        probes: From the model's own tokenizer.
        tokenizer_dir: The folder that is to be served.
        models: The folder with the Python files of the Triton models.
        added: The setting ``serve.add_special_tokens``.

    Raises:
        RepositoryError: Naming the first text that differs, and both sides.
    """
    from tokenizers import Tokenizer

    prompt = load_module(models, "preprocessing", "prompt")
    detokenizer = load_module(models, "tensorrt_llm_bls", "detokenizer")
    setting = None if added == AUTO else bool(added)
    encoder = prompt.PromptEncoder(tokenizer_dir, add_special_tokens=setting)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / TOKENIZER))
    for probe in probes.items:
        text = probe.text.encode()
        # As it is asked for in a request, which is how a rendered conversation is sent.
        plain = tuple(
            encoder.encode(text, "text_input", add_special_tokens=False) if probe.plain else ()
        )
        _same("is other tokens", probe.text, tokenizer_dir, probe.plain, plain)
        expected = probes.ids_of(probe, added)
        ids = tuple(encoder.encode(text, "text_input") if expected else ())
        _same("is other tokens", probe.text, tokenizer_dir, expected, ids)
        streamed = detokenizer.IncrementalDetokenizer(tokenizer)
        shown = "".join((*(streamed.push([token]) for token in ids), streamed.finish()))
        _same("comes out as another text", probe.text, tokenizer_dir, probe.decoded, shown)


def check_chat(probes: Probes, template: ChatTemplate | None, place: Path) -> None:
    """Compares a conversation as transformers renders it with the template that clients get.

    Args:
        probes: From the model's own tokenizer.
        template: What clients get; None where the model has none.
        place: What to name in the error.

    Raises:
        RepositoryError: The texts differ, or clients cannot render theirs.
    """
    if not probes.chat or template is None:
        return
    try:
        text = template.render(CHAT, strftime_now=A_DAY.strftime)
    except InvalidRequest as error:
        raise RepositoryError(error.what, where=str(place), why=error.why, fix=error.fix) from error
    if text != probes.chat:
        raise RepositoryError(
            f"a conversation becomes {_shown(text)} here, not {_shown(probes.chat)}",
            where=str(place),
            why="The chat template does something else than in transformers, which the model was "
            "trained with",
            fix="Use the template that the model was published with",
        )


def _same(what: str, text: str, place: Path, expected: Any, got: Any) -> None:
    if expected != got:
        raise RepositoryError(
            f"{text!r} {what} when it is served: {_shown(got)}, not {_shown(expected)}",
            where=str(place),
            why=f"{TOKENIZER} alone does not do what the model's tokenizer does in transformers, "
            "which calibration and evaluation used",
            fix=f"Save the tokenizer as one of the tokenizers library, so that {TOKENIZER} holds "
            "all of it; what Python code adds to it cannot be served",
        )


def _shown(value: Any) -> str:
    return reprlib.repr(list(value) if isinstance(value, tuple) else value)


def _around_added_tokens(tokenizer: HuggingFaceTokenizer) -> Iterator[str]:
    for token in sorted(tokenizer.get_added_vocab(), key=tokenizer.get_added_vocab().__getitem__):
        yield token
        yield f"a {token} b{token}c  {token}\n"


def _chat(tokenizer: HuggingFaceTokenizer) -> tuple[list[str], str | None]:
    """The chat template's output for one question, and why there is none."""
    if not tokenizer.chat_template:
        return [], "the model has no chat template"
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            CHAT, tokenize=False, add_generation_prompt=True, strftime_now=A_DAY.strftime
        )
    # What a template demands is its own affair, and its code may break on anything.
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        return [], f"the chat template does not take a plain question: {error}"
    return [str(text)], None
