"""Errors with the words of TensorRT-LLM's exceptions.

``TLLM_CHECK`` and ``TLLM_CHECK_WITH_INFO`` put ``[TensorRT-LLM][ERROR] Assertion failed:`` in
front of the expression or the text (tllmException.h, assert.h), ``TLLM_THROW`` puts nothing there.
Both end with the source's file and line, and the stack on further lines (tllmException.cpp), all of
which reaches the client.
"""

from __future__ import annotations

from typing import Any

_STACK = (
    "1       0x7f4a1c2b8d5f tensorrt_llm::common::throwRuntimeError(char const*, int, "
    "char const*) + 83\n"
    "2       0x7f4a1c31a9c2 /opt/tritonserver/backends/tensorrtllm/"
    "libtriton_tensorrtllm.so(+0x3a9c2) [0x7f4a1c31a9c2]\n"
    "3       0x7f4b0e6f1ac3 /usr/lib/x86_64-linux-gnu/libc.so.6(+0x94ac3) [0x7f4b0e6f1ac3]"
)


class TllmError(Exception):
    """A C++ exception; its text is ``what()``."""


def throw(text: str, source: str) -> TllmError:
    """``TLLM_THROW``: the exception to raise.

    Args:
        text: The message.
        source: Upstream's file.
    """
    return TllmError(f"{text} (/src/tensorrt_llm/{source}:1)\n{_STACK}")


def check(condition: Any, text: str, source: str) -> None:
    """``TLLM_CHECK`` with the expression as its text, or ``TLLM_CHECK_WITH_INFO``.

    Raises:
        TllmError: The condition does not hold.
    """
    if not condition:
        raise throw(f"[TensorRT-LLM][ERROR] Assertion failed: {text}", source)


def runtime_error(text: str) -> TllmError:
    """``std::runtime_error``: the text and nothing else."""
    return TllmError(text)
