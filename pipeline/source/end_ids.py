"""Which tokens end a text of a model: what all of its files say, each id checked.

Hugging Face's ``generate`` stops at the ids of generation_config.json, or of config.json where
there is no such file. vLLM stops at the tokenizer's eos token as well
(``SamplingParams.update_from_generation_config``), and upstream's preprocessing at that one alone
(``inflight_batcher_llm/preprocessing/1/model.py``). A fine-tune often changes only one of them, and
a text that ends for one program then never ends for another; so all of them count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError
from pipeline.models.architectures import ARCHITECTURES
from pipeline.source.chat_template import TemplateError, turn_end
from trtllm_client import ChatTemplate, InvalidRequest

GENERATION, CONFIG = "generation_config.json", "config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
DECODER = "added_tokens_decoder"
CHAT_TEMPLATE = "chat template"
KEY = "eos_token_id"
UNCHECKED = f"not checked: no tokenizer here (there is no {TOKENIZER})"
LOCAL_COPY = "A model from the Hub is changed in a local copy: hf download ID --local-dir DIR"

# The class where tokenizer_config.json names none, by config.json's model_type.
CLASSES = {row.model_type: row.tokenizer_class for row in ARCHITECTURES.values()}


@dataclass(frozen=True)
class EndId:
    """A token that ends a text.

    Attributes:
        id: Its id.
        token: Its text in the tokenizer's files; empty where there is no tokenizer.
        sources: What names it: files, or ``chat template``.
    """

    id: int
    token: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class EndIds:
    """All tokens that end a text of a model.

    Attributes:
        ends: The one that ends a chat turn comes first, then in the order of their sources.
        notes: What was left out, and why; sentences without their full stop.
    """

    ends: tuple[EndId, ...]
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> list[int]:
        """The ids alone."""
        return [end.id for end in self.ends]

    def lines(self) -> list[str]:
        """Writes the same as text, for a terminal."""
        if not self.ends:
            named = ["none: no file of the model names one, so every text runs to max_tokens"]
        else:
            named = [
                f"{end.id} {_shown(end.token)}".rstrip() + f"  ({', '.join(end.sources)})"
                for end in self.ends
            ]
        first, *others = [*named, *self.notes]
        return [f"end ids: {first}", *(f"         {line}" for line in others)]

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values."""
        return asdict(self)


def read_end_ids(directory: Path, place: str | None = None) -> EndIds:
    """Reads what ends a text from the JSON files of a Hugging Face snapshot.

    Args:
        directory: The snapshot.
        place: Its name in error messages; the directory itself by default.

    Raises:
        SourceError: A file is damaged, or names something that is no token of the model.
    """
    return _Reader(directory, place or str(directory)).read()


class _Reader:
    def __init__(self, directory: Path, place: str) -> None:
        self._directory, self._place = directory, place
        self._config = self._json(CONFIG)
        self._generation = self._json(GENERATION)
        self._tokenizer_config = self._json(TOKENIZER_CONFIG)
        self._special = self._special_tokens()
        self._added = self._added_tokens()
        # A plan needs config.json alone; a run refuses a model without its tokenizer.
        self._has_tokenizer = (directory / TOKENIZER).exists()

    def read(self) -> EndIds:
        notes: list[str] = []
        generation = list(self._named_ids(GENERATION, self._generation))
        config = list(self._named_ids(CONFIG, self._config))
        if generation and self._has_tokenizer:
            # transformers reads config.json's only where the other file names none. A left-over
            # there may be any word of the vocabulary; a token of its own can do no such harm.
            stale = [id_ for id_ in config if id_ not in (*generation, *self._added.values())]
            config = [id_ for id_ in config if id_ not in stale]
            notes += [
                f"left out: {KEY} {id_} of {CONFIG} is the ordinary token "
                f"{_shown(self._text(id_) or '')}, and {GENERATION} names others"
                for id_ in stale
            ]
        found: dict[int, list[str]] = {}
        turn, problem = self._turn_end()
        notes += problem
        for source, ids in (
            (CHAT_TEMPLATE, turn),
            (GENERATION, generation),
            (CONFIG, config),
            (TOKENIZER_CONFIG, list(self._eos_token())),
        ):
            for id_ in dict.fromkeys(ids):
                found.setdefault(id_, []).append(source)
        if found and not self._has_tokenizer:
            notes.append(UNCHECKED)
        ends = (EndId(id_, self._text(id_) or "", tuple(names)) for id_, names in found.items())
        return EndIds(tuple(ends), tuple(notes))

    def _named_ids(self, name: str, values: Mapping[str, Any]) -> Iterator[int]:
        """The ids of a file, each a token of the model."""
        named = values.get(KEY)
        if named is None:
            return
        for id_ in named if isinstance(named, list) else [named]:
            if type(id_) is not int or id_ < 0:
                problem = f"A token id is a whole number from 0, and {json.dumps(id_)} is none"
            elif self._is_beyond(id_):
                problem = f"{self._last_token()}, so this one never comes and every request would "
                problem += "be refused for naming it"
            elif self._has_tokenizer and self._text(id_) is None:
                problem = f"The tokenizer has no token {id_}"
            else:
                yield id_
                continue
            raise SourceError(
                f"{KEY} is {json.dumps(named)}",
                where=f"{self._place}/{name}",
                why=problem,
                fix="Name the id of the token that ends a text there, or a list of such ids, or "
                f"null for none. {LOCAL_COPY}",
            )

    def _eos_token(self) -> Iterator[int]:
        """The id of the tokenizer's eos token, as AutoTokenizer takes it from the files."""
        token = self._special.get("eos_token")
        if token is None:
            return
        id_ = self._added[token] if token in self._added else self._ordinary.get(token)
        if id_ is None:
            kind = str(self._tokenizer_config.get("tokenizer_class") or self._class)
            defaults = ChatTemplate.CLASS_DEFAULTS.get(kind.removesuffix("Fast"), {})
            if token == defaults.get("eos_token") or not self._has_tokenizer:
                return
            problem = f"{TOKENIZER} has no such token"
        elif self._is_beyond(id_):
            problem = f"Its id is {id_}. {self._last_token()}"
        else:
            yield id_
            return
        raise SourceError(
            f"eos_token is {json.dumps(token, ensure_ascii=False)}, which the model does not have",
            where=f"{self._place}/{TOKENIZER_CONFIG}",
            why=problem,
            fix="Name the token that ends a text there, or use the tokenizer's files that were "
            f"saved with the model. {LOCAL_COPY}",
        )

    def _turn_end(self) -> tuple[list[int], list[str]]:
        """The id of the token that ends a chat turn; or none, and why the template has no say."""
        try:
            template = ChatTemplate.find(self._directory, self._class)
            token = turn_end(template, self._added) if template else None
        except (InvalidRequest, TemplateError) as error:
            return [], [f"the chat template is ignored: it cannot be rendered: {error}"]
        if token is None:
            return [], []
        if self._is_beyond(self._added[token]):
            what = f"{self._added[token]} {token}, which ends a chat turn"
            return [], [f"left out: {what}. {self._last_token()}"]
        return [self._added[token]], []

    def _special_tokens(self) -> dict[str, str]:
        """Names and texts of the special tokens."""
        try:
            return ChatTemplate.find_special_tokens(self._directory, self._class)
        except InvalidRequest as error:
            name = Path(error.where or "").name
            raise self._unreadable(name, error.why or error.what) from error

    @property
    def _class(self) -> str:
        """The tokenizer's class where its own files name none."""
        return CLASSES.get(str(self._config.get("model_type")), "")

    @cached_property
    def _ordinary(self) -> dict[str, int]:
        """The ordinary tokens: megabytes, and hardly ever needed."""
        return _vocabulary(self._json(TOKENIZER))

    def _added_tokens(self) -> dict[str, int]:
        """Tokens beside the ordinary ones; AutoTokenizer adds those that tokenizer.json lacks."""
        decoder = self._tokenizer_config.get(DECODER)
        found: dict[str, int] = {}
        if isinstance(decoder, dict):
            named = ((_content(token), id_) for id_, token in decoder.items())
            found |= {text: int(id_) for text, id_ in named if text and id_.isdecimal()}
        else:
            found |= {t: id_ for t, id_ in self._json(ADDED_TOKENS).items() if type(id_) is int}
        for entry in self._added_entries():
            text = _content(entry)
            if text and type(entry.get("id")) is int:
                found[text] = entry["id"]
        return found

    def _added_entries(self) -> list[Any]:
        """``added_tokens`` of tokenizer.json, which come before its vocabulary."""
        try:
            text = (self._directory / TOKENIZER).read_text(encoding="utf-8")
            # Within a string the quotes would be escaped, and a token's value is a number.
            start = re.search(r'"added_tokens"\s*:\s*(?=\[)', text)
            entries: list[Any] = (
                json.JSONDecoder().raw_decode(text, start.end())[0] if start else []
            )
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable(TOKENIZER, error) from error
        return entries

    def _is_beyond(self, id_: int) -> bool:
        size = self._config.get("vocab_size")
        return type(size) is int and id_ >= size

    def _last_token(self) -> str:
        return f"The last token of the model is {self._config['vocab_size'] - 1} (vocab_size)"

    def _text(self, id_: int) -> str | None:
        added = next((token for token, known in self._added.items() if known == id_), None)
        if added is not None:
            return added
        return next((token for token, known in self._ordinary.items() if known == id_), None)

    def _json(self, name: str) -> dict[str, Any]:
        """A file's object; empty where there is no such file."""
        path = self._directory / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("It is not a JSON object")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable(name, error) from error
        return content

    def _unreadable(self, name: str, error: object) -> SourceError:
        return SourceError(
            f"{name} cannot be read",
            where=f"{self._place}/{name}",
            why=str(error),
            fix="Download or save it again",
        )


def _shown(token: str) -> str:
    return token if token.isprintable() and token.strip() == token else json.dumps(token)


def _content(token: object) -> str | None:
    """The text of a special token, which may be an object with more about it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The ordinary tokens; Unigram models have a list of texts with scores."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return vocabulary
    rows = vocabulary if isinstance(vocabulary, list) else ()
    return {row[0]: id_ for id_, row in enumerate(rows) if isinstance(row, list) and row}
