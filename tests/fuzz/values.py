"""What inputs may hold: ordinary values, borders, and what no request may hold."""

from __future__ import annotations

from random import Random
from typing import Any

NAN, INF = float("nan"), float("inf")
INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)

PROMPTS = (
    "Once there was a gentle boy named Jack, and",
    "Once there was a girl named Zoë. She had a",
    "One day, the hen",
    " ",
    "\n\n",
    "a",
    "Once there was a 🐌 on the roof and a 漢字 \u200d in the",
    "naïve café — “quoted” … \u00a0 end",
    "zero \x00 in the middle",
    "</s> </s>",
    "<s>Once there was",
    "<pad>",
    "the end</s>",
    "\ufeffbom and \u202e turned",
    "👨\u200d👩\u200d👧\u200d👦 and e\u0301",
    '{"a": [1, 2]} \\ " \' % $ {{ x }}',
)
BROKEN_TEXTS = (
    b"\xff\xfe",
    b"Once \xc3",
    b"\xed\xa0\x80 a surrogate",
    b"\xf4\x90\x80\x80",
    b"\x80",
    b"\xc0\xaf too long a way to write it",
)

# By type and text: whether some text can follow it.
GUIDES = {
    ("json", ""): True,
    ("json_schema", '{"type": "boolean"}'): True,
    ("json_schema", '{"enum": ["red", "blue"]}'): True,
    (
        "json_schema",
        (
            '{"type": "object", "properties": {"a": {"type": "integer"}}, '
            '"required": ["a"], "additionalProperties": false}'
        ),
    ): True,
    ("regex", "yes|no"): True,
    ("regex", "[0-9]{3}"): True,
    ("ebnf_grammar", 'root ::= "yes" | "no"'): True,
    ("json_schema", "{"): False,
    ("json_schema", "[1]"): False,
    ("json_schema", '{"type": "object", "properties": {"a": NaN}}'): False,
    ("json_schema", ""): False,
    ("regex", "("): False,
    ("regex", ""): False,
    ("regex", "a\x00b"): False,
    ("regex", "(" * 300 + "a" + ")" * 300): False,
    ("ebnf_grammar", "root = what"): False,
    ("ebnf_grammar", 'start ::= "a"'): False,
    ("yaml", "a: b"): False,
    ("JSON", ""): False,
}

# By the text models' name: what is right, and what is wrong.
SCALARS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "top_k": ((0, 1, 2, 50, 1024, 1025, INT32_MAX), (-1, INT32_MIN)),
    "top_p": ((0.0, 1.0, 0.5, 0.95, 1e-7, -0.0), (1.0000001, -1e-9, -1.0, 2.0, NAN, INF, -INF)),
    "temperature": (
        (0.0, 1.0, 0.7, 1e-6, 1e-38, 1e-45, 100.0, 3.0e38),
        (-1.0, -1e-30, NAN, INF, -INF),
    ),
    "repetition_penalty": ((1.0, 1.2, 0.5, 10.0, 1e-3), (0.0, -1.0, NAN, INF, -0.0)),
    "length_penalty": ((0.0, 1.0, 5.0), (-1.0, NAN, INF)),
    "beam_search_diversity_rate": ((0.0, 0.5), (-1.0, NAN)),
    "presence_penalty": ((0.0, -0.0), (0.5, -1.0, NAN, INF)),
    "frequency_penalty": ((0.0,), (0.5, -1.0, NAN, INF)),
    "min_tokens": ((0, 1, 2), (-1, INT32_MAX, INT32_MIN, 600)),
    "seed": ((0, 1, 42, 2**32, 2**63 - 1, 2**63, 2**64 - 1), ()),
    "beam_width": ((1,), (0, 2, -1, INT32_MAX, INT32_MIN)),
    "num_return_sequences": ((1,), (0, 2, -1, INT32_MAX)),
    "end_id": ((-1, 0, 1, 5, 1023), (-2, 1024, INT32_MAX, INT32_MIN)),
    "pad_id": ((0, 2, 1023, -1), ()),
    "prompt_table_extra_id": ((0,), (1, 2**64 - 1)),
    "num_draft_tokens": ((0,), (1, -1, 4)),
    "use_draft_logits": ((False,), (True,)),
    "return_log_probs": ((False, True), ()),
    "return_context_logits": ((False,), (True,)),
    "return_generation_logits": ((False,), (True,)),
    "return_perf_metrics": ((False, True), ()),
    "return_num_input_tokens": ((False, True), ()),
    "return_num_output_tokens": ((False, True), ()),
    "return_prompt_log_probs": ((False,), (True,)),
    "exclude_input_in_output": ((False, True), ()),
    "add_special_tokens": ((False, True), ()),
    "stream": ((False, True, True), ()),
    "stop": ((False,), ()),
}
MAX_TOKENS = ((1, 2, 3, 5, 8, 12, 20, 32), (0, -1, INT32_MIN, INT32_MAX, 513, 100_000))
WORDS = (b"the", b" and", b".", b"Jack", "é".encode(), "🐌".encode(), b"zzz", b"\n", b" the hen")

PARAMETERS: tuple[tuple[tuple[str, Any], ...], tuple[tuple[str, Any], ...]] = (
    (("priority", 1), ("Streaming", True), ("timeout", 60_000_000)),
    (
        ("temprature", 0.5),
        ("streaming", True),
        ("random_seed", 7),
        ("min_length", 1),
        ("return_kv_cache_reuse_stats", True),
        ("max_token", 5),
        ("stop_word", "the"),
        ("", 1),
        ("a\nb", "c"),
        ("é", "🐌"),
        ("x" * 5000, 1),
    ),
)
OPEN_PARAMETERS: tuple[tuple[str, Any], ...] = (
    ("timeout", 1),
    ("timeout", -1),
    ("timeout", "soon"),
    ("priority", "high"),
    ("priority", -1),
    ("priority", 2**62),
    ("sequence_id", 7),
    ("sequence_id", "seven"),
    ("sequence_start", True),
    ("triton_made_up", 1),
    ("triton_error_status", True),
    ("binary_data_output", True),
)
IDS = ("", "1", "a", "ünï", "x" * 3000, "same", "a\nb", "\x00", "-" * 64, "%s%n{}")


def text(random: Random, *, wrong: bool) -> bytes:
    """A prompt; a wrong one is no UTF-8 or too long."""
    if wrong:
        kind = random.random()
        if kind < 0.6:
            return random.choice(BROKEN_TEXTS)
        if kind < 0.75:
            return b"once more " * 2000
        if kind < 0.8:
            return b"a" * 1_000_000
        return b"Once there was a girl. " * 60
    kind = random.random()
    if kind < 0.8:
        return random.choice(PROMPTS).encode()
    if kind < 0.9:
        count = random.randrange(1, 40)
        return "".join(chr(_character(random)) for _ in range(count)).encode()
    return ("Once there was a girl. " * random.randrange(1, 20)).encode()


def _character(random: Random) -> int:
    """Any character that UTF-8 has."""
    while True:
        code = random.choice((random.randrange(0x20, 0x7F), random.randrange(0x110000)))
        if not 0xD800 <= code < 0xE000:
            return code
