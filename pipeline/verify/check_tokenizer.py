"""Is it the model's own tokenizer that is served?"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.source.probes import Probe, Probes, cleaned_up
from pipeline.triton.contract import POSTPROCESSING, PREPROCESSING
from pipeline.verify.check import CheckFailed, CheckSkipped, Context, Details, check
from pipeline.verify.check_openai import same_tokens
from pipeline.verify.tokens import chooses_special_tokens, special_tokens_setting, token_ids
from trtllm_client import InvalidRequest, add_input, new_message


@check(
    "prompts become the tokens, and tokens the text, that the model's own tokenizer gives",
    asks="texts through preprocessing, and their ids through postprocessing",
)
def own_tokenizer(context: Context) -> Details:
    """Every probe text through ``preprocessing``, and its ids through ``postprocessing``."""
    probes = context.probes
    if probes is None:
        raise CheckSkipped("the model's tokenizer is not known: name its folder with --tokenizer")
    if not context.on_triton:
        return same_tokens(context)
    missing = [name for name in (PREPROCESSING, POSTPROCESSING) if not context.has(name)]
    if missing:
        raise CheckSkipped(f"the server has no model {' and '.join(missing)}")
    setting, chooses = special_tokens_setting(context), chooses_special_tokens(context)
    wrong: list[tuple[Probe, str, object, object]] = []
    without_spaces = 0
    refused: dict[int, str] = {}
    longest = 0
    for probe in probes.items:
        expected = list(probes.ids_of(probe, setting))
        if not expected:
            continue  # a text of no token is no prompt
        try:
            ids = token_ids(context, probe.text)
        except InvalidRequest as error:  # an engine may have less room than a text needs
            refused.setdefault(len(expected), error.what)
            continue
        longest = max(longest, len(expected))
        if ids != expected:
            wrong.append((probe, "other tokens", expected, ids))
        if chooses and probe.text == probes.chat:
            # As a client sends what the chat template wrote.
            ids = token_ids(context, probe.text, add_special_tokens=False)
            if ids != list(probe.plain):
                what = "other tokens without special tokens added"
                wrong.append((probe, what, list(probe.plain), ids))
        text = _text(context, probe.ids)
        without_spaces += len(text) < len(probe.decoded)
        if not _is_the_text(text, probe, probes):
            wrong.append((probe, "another text", probe.decoded, text))
    if wrong:
        probe, what, right, got = wrong[0]
        raise CheckFailed(
            f"{probe.text!r} gives {what}: {_short(got)}, not {_short(right)}; "
            f"{len(wrong)} of {2 * len(probes.items)} answers differ",
            text=probe.text,
            expected=right,
            got=got,
            different=len(wrong),
        )
    shortest = min(refused, default=longest + 1)
    if shortest <= longest:
        raise CheckFailed(
            f"a text of {shortest} tokens is refused, and one of {longest} is not: "
            f"{refused[shortest]}"
        )
    if not longest:
        raise CheckSkipped(f"not exercised: every text is refused: {refused[shortest]}")
    return {
        "texts": len(probes.items),
        "longest_text_taken": longest,
        "with_spaces_taken_out": without_spaces,
    }


def _is_the_text(text: str, probe: Probe, probes: Probes) -> bool:
    # NVIDIA's postprocessing decodes with transformers 4, which takes spaces out where it is asked.
    rights = {probe.decoded, *([cleaned_up(probe.decoded)] if probes.cleans_up else [])}
    # Postprocessing cannot know whether ids continue a text, and keeps the space of a first word.
    return text in rights or text.removeprefix(" ") in rights


def _text(context: Context, ids: Sequence[int]) -> str:
    """The text of ids, as the server decodes an answer that comes in one piece."""
    message = new_message(POSTPROCESSING, outputs=("OUTPUT",))
    add_input(message, "TOKENS_BATCH", list(ids), datatype="INT32")
    message.inputs[-1].shape[:] = [1, 1, len(ids)]  # batch, beams, tokens
    add_input(message, "SEQUENCE_LENGTH", [len(ids)], datatype="INT32")
    answer = context.triton.infer(message)
    if "OUTPUT" not in answer:
        raise CheckFailed(f"{POSTPROCESSING} sent no OUTPUT")
    text = answer["OUTPUT"][0]
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."
