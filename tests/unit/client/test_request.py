"""What is refused before it is sent."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import get_type_hints

import pytest

from tests.unit.client.fake_triton import Asked, piece
from trtllm_client import GenerateRequest, InvalidRequest, ServerFailed, encode_request
from trtllm_client._request import SamplingOptions
from trtllm_client._wire import add_input, decode_outputs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": b"caf\xe9"}, "prompt is not valid UTF-8.*position 3"),
        ({"prompt": "\ud83d"}, "prompt is not valid UTF-8.*Surrogates"),
        ({"prompt": 7}, "prompt must be text, not int"),
        ({"max_tokens": 0}, "max_tokens must be between 1 and 2147483647, not 0"),
        ({"max_tokens": -5}, "max_tokens must be between 1 and 2147483647, not -5"),
        ({"max_tokens": 2**31}, "max_tokens must be between"),
        ({"max_tokens": None}, "max_tokens must be a whole number, not None"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, not 1.5"),
        ({"max_tokens": True}, "max_tokens must be a whole number, not True"),
        ({"min_tokens": 65}, "min_tokens must be between 0 and 64, not 65"),
        ({"top_k": -1}, "top_k must be between"),
        ({"top_p": 1.01}, "top_p must be between 0 and 1, not 1.01"),
        ({"top_p": -0.1}, "top_p must be between 0 and 1, not -0.1"),
        ({"top_p": math.nan}, "top_p must be a finite 32-bit number, not nan"),
        ({"length_penalty": -0.5}, "length_penalty must be at least 0, not -0.5"),
        ({"temperature": -1}, "temperature must be at least 0, not -1"),
        ({"temperature": math.inf}, "temperature must be a finite 32-bit number, not inf"),
        ({"temperature": "hot"}, "temperature must be a finite 32-bit number, not 'hot'"),
        ({"temperature": 1e39}, "temperature must be a finite 32-bit number"),
        ({"temperature": 10**400}, "temperature must be a finite 32-bit number"),
        ({"presence_penalty": 1e300}, "presence_penalty must be a finite 32-bit number"),
        ({"presence_penalty": -1e300}, "presence_penalty must be a finite 32-bit number"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"seed": -1}, "seed must be between 0 and 18446744073709551615, not -1"),
        ({"end_id": -2}, "end_id must be between -1"),
        ({"stop_words": "."}, "stop_words must be a list of texts"),
        ({"stop_words": None}, "stop_words must be a list of texts, not NoneType"),
        ({"stop_words": 3}, "stop_words must be a list of texts, not int"),
        ({"stop_words": (w for w in ".")}, "stop_words must be a list of texts, not generator"),
        ({"stop_words": (".", "")}, "stop_words has an empty text"),
        ({"bad_words": (b"\xff",)}, "bad_words is not valid UTF-8"),
        ({"guided_decoding_guide": "{}"}, "guided_decoding_guide needs guided_decoding_guide_type"),
        (
            {"guided_decoding_guide_type": "schema", "guided_decoding_guide": "{}"},
            "guided_decoding_guide_type must be one of json, json_schema, regex, ebnf_grammar, not",
        ),
        ({"guided_decoding_guide_type": "regex"}, "guided_decoding_guide must be text, not NoneT"),
        (
            {"guided_decoding_guide_type": "regex", "guided_decoding_guide": ""},
            "guided_decoding_guide is empty; regex needs one",
        ),
        (
            {"guided_decoding_guide_type": "json", "guided_decoding_guide": "{}"},
            "guided_decoding_guide means nothing for the type json",
        ),
        (
            {"guided_decoding_guide_type": "json", "min_tokens": 2},
            "min_tokens does not go with a guide",
        ),
        ({"request_id": ""}, "request_id must be a text"),
        ({"request_id": "\ud83d"}, "request_id is not valid UTF-8"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(InvalidRequest, match=message.split(".*", maxsplit=1)[0]) as caught:
        GenerateRequest(**{"prompt": "Hi", **fields}).validate()
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "Hé 😀".encode()},
        {"prompt": "\x00"},
        {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 2**64 - 1, "end_id": -1},
        {"min_tokens": 64, "presence_penalty": -2.0, "stop_words": (".", "\n\n")},
        {"temperature": 3.4e38, "stop_words": (".",)},
    ],
)
def test_accepted(fields):
    request = GenerateRequest(**{"prompt": "Hi", **fields})
    request.validate()
    message = encode_request(request, model="ensemble", request_id="1", stream=True)
    asked = Asked(message)
    for name, value in fields.items():
        sent = asked.values[{"prompt": "text_input"}.get(name, name)]
        wanted = value if isinstance(value, tuple) else (value,)
        wanted = tuple(w.encode() if isinstance(w, str) else w for w in wanted)
        assert sent == pytest.approx(wanted) if isinstance(value, float) else sent == wanted


def test_a_value_that_does_not_fit_or_an_unknown_tensor_is_a_mistake_of_the_caller():
    message = encode_request(GenerateRequest("Hi"), model="m", request_id="1", stream=True)
    with pytest.raises(InvalidRequest, match="does not fit into INT32"):
        add_input(message, "top_k", [2**31])
    with pytest.raises(InvalidRequest, match="no input 'nope'"):
        add_input(message, "nope", [1])


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "\ud83d"},
        {"prompt": None},
        {"temperature": 1e39},
        {"temperature": "hot"},
        {"max_tokens": 2**31},
        {"stop_words": 5},
        {"stop_words": (w for w in ".")},
        {"request_id": "\ud83d"},
    ],
)
def test_what_was_not_checked_and_cannot_be_sent_is_refused_all_the_same(fields):
    request = GenerateRequest(**{"prompt": "Hi", **fields})
    with pytest.raises(InvalidRequest, match=r"does not fit into|cannot be sent"):
        encode_request(request, model="m", request_id=request.request_id or "1", stream=True)


def test_keyword_arguments_are_the_fields_of_a_request():
    fields = {field.name for field in dataclasses.fields(GenerateRequest)}
    assert set(SamplingOptions.__annotations__) == fields - {"prompt"}
    hints = get_type_hints(GenerateRequest)
    assert get_type_hints(SamplingOptions) == {name: hints[name] for name in fields - {"prompt"}}


def test_outputs_are_decoded_by_their_type():
    response = piece("né", num_output_tokens=3).infer_response
    assert decode_outputs(response) == {"text_output": ("né".encode(),), "num_output_tokens": (3,)}


@pytest.mark.parametrize(
    ("datatype", "raw", "message"),
    [
        ("BYTES", b"\x05\x00\x00\x00ab", "text tensor text_output is cut off"),
        ("BYTES", b"\x05\x00", "text tensor text_output is cut off"),
        ("INT32", b"\x00\x00\x00", "3 bytes is not INT32"),
        ("FP8", b"\x00", "1 bytes is not FP8"),
    ],
)
def test_damaged_outputs_are_errors(datatype, raw, message):
    response = piece("x").infer_response
    response.outputs[0].datatype = datatype
    response.raw_output_contents[0] = raw
    with pytest.raises(ServerFailed, match=message):
        decode_outputs(response)


@pytest.mark.parametrize("prompt", ["", b""])
def test_whether_an_empty_prompt_can_be_continued_is_the_servers_to_say(prompt):
    GenerateRequest(prompt).validate()
