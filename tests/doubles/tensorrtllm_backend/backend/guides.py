"""Guided decoding: ``cpp/tensorrt_llm/batch_manager/guidedDecoder.cpp``, with xgrammar itself.

The release is that of TensorRT-LLM 1.2 (its 3rdparty/xgrammar), so what compiles here compiles
there. Nothing is caught: what xgrammar throws while a request is stepped ends all of them.

Its Python package imports torch, transformers and triton, of which C++ needs nothing. So the
binding of its C++ classes is loaded alone, and the arguments are C++'s defaults.
"""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

import numpy as np

from .decoder import Scores
from .settings import TokenizerInfo

Guide = tuple[str, str | None]
"""The type, and the guide's text; ``json`` needs none."""


class Grammars:
    """``GuidedDecoder``: makes a matcher for each guide.

    Args:
        info: Content of ``xgrammar_tokenizer_info_path``.
        vocab_size: Columns of the scores.
    """

    def __init__(self, info: TokenizerInfo, vocab_size: int) -> None:
        self._xgrammar, self._vocab_size = _bindings(), vocab_size
        kinds = self._xgrammar.TokenizerInfo
        # TokenizerInfo::FromHuggingFace, which the binding has in two steps.
        found = json.loads(kinds._detect_metadata_from_hf(info.tokenizer_str))
        self._compiler = self._xgrammar.GrammarCompiler(
            kinds(
                list(info.encoded_vocab),
                found["vocab_type"],
                vocab_size,
                list(info.stop_token_ids),
                found["add_prefix_space"],
            ),
            8,  # threads
            True,
            -1,
        )

    def matcher(self, guide: Guide) -> Matcher:
        """The state of a text at its beginning.

        Raises:
            RuntimeError: xgrammar cannot compile the guide.
        """
        (kind, text), grammar, compiler = guide, self._xgrammar.Grammar, self._compiler
        if kind == "json":
            compiled = compiler.compile_builtin_json_grammar()
        elif kind == "json_schema":
            compiled = compiler.compile_json_schema(text, True, None, None, True, None)
        elif kind == "regex":
            compiled = compiler.compile_grammar(grammar.from_regex(text, False))
        else:
            compiled = compiler.compile_grammar(grammar.from_ebnf(text, "root"))
        return Matcher(self._xgrammar.GrammarMatcher(compiled, None, False, -1), self._vocab_size)


class Matcher:
    """How far a text has come in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = np.zeros((1, -(-vocab_size // 32)), np.int32)

    def accept(self, token: int) -> None:
        """``AcceptToken``; a token that does not fit is logged by xgrammar and changes nothing.

        Raises:
            RuntimeError: The text has ended already.
        """
        self._matcher.accept_token(token, False)

    def masked(self, scores: Scores) -> Scores:
        """``invokeLogitsBitmask``: what may not come next is -inf.

        Args:
            scores: float32 [vocabulary].
        """
        self._matcher.fill_next_token_bitmask(self._bits, 0, False)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]
        return np.where(allowed.astype(bool), scores, np.float32(-np.inf))


def _bindings() -> Any:
    package = importlib.util.find_spec("xgrammar")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "guided decoding of this stand-in needs xgrammar; scripts/install installs it"
        )
    (file,) = Path(package.submodule_search_locations[0]).glob("xgrammar_bindings.*")
    loader = ExtensionFileLoader("xgrammar_bindings", str(file))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
