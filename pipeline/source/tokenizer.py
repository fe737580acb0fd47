"""The tokenizer of a snapshot, as transformers builds it: one loader for all who read or serve it.

``tokenizer.json`` alone is not the tokenizer. transformers changes what it read: the class puts bos
in front of a text (``LlamaTokenizerFast``), tokenizer_config.json, added_tokens.json and
special_tokens_map.json add tokens and replace their flags. Calibration and evaluation see the
result, so the repository gets a tokenizer.json that holds it.
"""

from __future__ import annotations

import json
import shlex
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.dependencies import require
from pipeline.errors import SourceError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
# What turns a sentencepiece model into a tokenizer.json; transformers needs both. From 0.2.3 on
# sentencepiece refuses protobuf 6, and tritonclient refuses protobuf 7.
CONVERTER = "pip install 'sentencepiece<0.2.3' 'protobuf<7'"


class HuggingFaceTokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    is_fast: bool
    bos_token_id: int | None
    eos_token_id: int | None
    backend_tokenizer: Any
    chat_template: Any
    special_tokens_map: Mapping[str, Any]
    clean_up_tokenization_spaces: bool

    def __call__(self, text: str, /, *, return_offsets_mapping: bool) -> Mapping[str, Any]:
        """Returns ``input_ids`` as :meth:`encode` does, and ``offset_mapping``, if it is fast."""

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        """Returns token ids with the model's own special tokens, or without."""

    def decode(
        self,
        token_ids: list[int],
        /,
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
    ) -> str:
        """Returns the text of token ids."""

    def get_added_vocab(self) -> dict[str, int]:
        """Returns the ids of the added tokens."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], /, **options: Any
    ) -> str | list[int]:
        """Returns the text of a conversation, with ``tokenize=False``."""


def open_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> HuggingFaceTokenizer:
    """Loads the tokenizer of a Hugging Face snapshot, from local files only.

    Args:
        directory: The snapshot.
        trust_remote_code: Runs the snapshot's own Python.

    Raises:
        MissingDependencyError: transformers is not installed.
        SourceError: The snapshot has no tokenizer that can be read; with what would help.
    """
    transformers = require("transformers", "quantize")
    transformers.logging.set_verbosity_error()
    config = _read_config(directory)
    loader, options = transformers.AutoTokenizer, {"trust_remote_code": trust_remote_code}
    if written_by_transformers_5(config) and (directory / TOKENIZER).is_file():
        loader, options = transformers.PreTrainedTokenizerFast, _options_of_version_4(config)
    try:
        tokenizer: HuggingFaceTokenizer = loader.from_pretrained(
            directory, local_files_only=True, **options
        )
    # The Rust library raises Exception itself for a tokenizer.json that it cannot parse, and the
    # Python around it whatever its files' contents break.
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SourceError(
            "the tokenizer cannot be loaded",
            where=str(directory),
            # Some of them go on with the names of all models that there are.
            why=textwrap.shorten(said, 300, placeholder=" ..."),
            fix=_remedy(directory, config),
        ) from error
    return tokenizer


def written_by_transformers_5(config: dict[str, Any]) -> bool:
    """Recognizes a tokenizer_config.json in the layout of transformers 5, which 4 cannot read.

    Args:
        config: Its content.
    """
    return (
        config.get("tokenizer_class") == "TokenizersBackend"
        or config.get("backend") == "tokenizers"
        or isinstance(config.get("extra_special_tokens"), list)
    )


def served_file(tokenizer: HuggingFaceTokenizer, snapshot: Path) -> str:
    """Writes the text of a tokenizer.json that does what a tokenizer does.

    Args:
        tokenizer: As :func:`open_tokenizer` returns it.
        snapshot: Where it is from. A tokenizer in Python has nothing to write; the file beside it
            is taken, and the comparison of texts tells whether it does the same.
    """
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        content = json.loads(backend.to_str())
        for token in content["added_tokens"]:
            # A token that was special once is skipped forever by the tokenizer that was changed in
            # memory, whatever its flag says by then; a file has only the flag.
            token["special"] = token["special"] or _is_skipped(backend, token["id"])
        content["added_tokens"] = list(_with_earlier_flags(tokenizer, content))
    else:
        content = json.loads((snapshot / TOKENIZER).read_text(encoding="utf-8"))
    # Files saved while training may cut or pad every text; encode() of transformers never does.
    content["truncation"] = content["padding"] = None
    return f"{json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n"


def served_config(tokenizer: HuggingFaceTokenizer, snapshot: Path) -> str:
    """Writes the text of a tokenizer_config.json that names the special tokens in force.

    special_tokens_map.json, or the class, may name others than the snapshot's own file does.

    Args:
        tokenizer: As :func:`open_tokenizer` returns it.
        snapshot: Where it is from.
    """
    config = _read_config(snapshot)
    for name in NAMED_TOKENS:
        token, given = getattr(tokenizer, name, None), config.get(name)
        if token is not None and _content(given) != str(token):
            config[name] = str(token)
    return f"{json.dumps(config, indent=2, ensure_ascii=False)}\n"


def write_once(directory: Path) -> str:
    """Gives the command by which transformers writes a directory's missing tokenizer.json."""
    return (
        'python -c "import sys; from transformers import AutoTokenizer as T; '
        'T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])" '
        f"{shlex.quote(str(directory))}"
    )


def without_tokenizer_json(directory: Path) -> str:
    """Says what to do about a directory without tokenizer.json, by the files that it has."""
    if (directory / "tokenizer.model").is_file():
        return (
            f"Install what reads tokenizer.model: {CONVERTER} (for Llama 3's own file: tiktoken); "
            f"then write it once: {write_once(directory)}"
        )
    if (directory / "vocab.json").is_file():
        return f"Write it once: {write_once(directory)}"
    return "Copy the tokenizer's files from where the model was trained or downloaded"


def _options_of_version_4(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 keeps everything in tokenizer.json, and further special tokens as a list.

    It ignores ``add_bos_token`` and the class where there is a tokenizer.json of its own making.
    """
    extra = config.get("extra_special_tokens")
    options: dict[str, Any] = {"extra_special_tokens": {}}
    if isinstance(extra, list):
        options["additional_special_tokens"] = extra
    elif isinstance(extra, dict):
        options["extra_special_tokens"] = extra
    return options


def _remedy(directory: Path, config: dict[str, Any]) -> str:
    if not (directory / TOKENIZER).is_file():
        return without_tokenizer_json(directory)
    if config.get("add_prefix_space") is not None:
        # LlamaTokenizerFast builds itself anew then, whatever tokenizer.json says.
        if (directory / "tokenizer.model").is_file():
            return (
                "With add_prefix_space it is made of tokenizer.model; install what reads that: "
                f"{CONVERTER}"
            )
        return (
            f"Remove add_prefix_space from {CONFIG}, or put tokenizer.model beside it, which it is "
            f"then made of, and install what reads it: {CONVERTER}"
        )
    return (
        f"The model directory needs {TOKENIZER} and {CONFIG} as save_pretrained() writes them; "
        'for a class that is not known, "tokenizer_class": "PreTrainedTokenizerFast" takes '
        f"{TOKENIZER} as it is"
    )


def _is_skipped(backend: Any, token: int) -> bool:
    whole, skipped = (
        str(backend.decode([token], skip_special_tokens=skip)) for skip in (False, True)
    )
    return whole != skipped


def _with_earlier_flags(
    tokenizer: HuggingFaceTokenizer, content: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The entries of a file's added tokens, some of them twice.

    The library looks for added tokens in the text as it came and in the normalized text, by their
    flag ``normalized``. Where transformers changed the flag of one it goes on being looked for in
    both; a file says that by an entry with the old flag in front of the one with the new.

    Args:
        tokenizer: The tokenizer in memory.
        content: Its tokenizer.json.
    """
    entries = content["added_tokens"]
    if tokenizer.backend_tokenizer.normalizer is None:
        yield from entries
        return
    from tokenizers import Tokenizer

    plain = {**content, "truncation": None, "padding": None}
    written = Tokenizer.from_str(json.dumps(plain))
    written.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
    for entry in entries:
        if any(
            tokenizer.encode(text, add_special_tokens=False)
            != written.encode(text, add_special_tokens=False).ids
            for text in _spellings(entry["content"])
        ):
            yield {**entry, "normalized": not entry["normalized"]}
        yield entry


def _spellings(token: str) -> set[str]:
    """Texts in which a token is found by one of the two ways only, whatever the normalizer does."""
    forms = {unicodedata.normalize(form, token) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    forms |= {token, token.upper(), token.lower(), token.title()}
    forms |= {token.replace(" ", "\u2581"), token.replace("\u2581", " ")}
    return {f"a{form}b" for form in forms} | {f"a {form} b" for form in forms} | forms


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise SourceError(
            "the file cannot be read", where=str(path), why=str(error), fix="Download it again"
        ) from error
    return dict(content) if isinstance(content, dict) else {}
