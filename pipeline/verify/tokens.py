"""Token ids of a text, from the server's own preprocessing model."""

from __future__ import annotations

from pipeline.client import add_input, new_message
from pipeline.triton.contract import PREPROCESSING
from pipeline.verify.check import CheckFailed, Context


def token_ids(context: Context, text: str) -> list[int]:
    """The ids of a text, as the server tokenizes a prompt."""
    message = new_message(PREPROCESSING, outputs=("INPUT_ID", "REQUEST_INPUT_LEN"))
    add_input(message, "QUERY", [text], datatype="BYTES")
    add_input(message, "REQUEST_OUTPUT_LEN", [1], datatype="INT32")
    answer = context.client.infer(message)
    if "INPUT_ID" not in answer:
        raise CheckFailed("preprocessing sent no INPUT_ID")
    length = int(answer.get("REQUEST_INPUT_LEN", (len(answer["INPUT_ID"]),))[0])
    return [int(token) for token in answer["INPUT_ID"][:length]]
