"""An engine that computes NaN."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from trtllm_client import Client, ServerFailed

from .asking import PROMPTS, ask_alone
from .edited import Edit, edited
from .record import Fault
from .service import Service

ENGINE = "tensorrt_llm/1/engine"
TOKENIZER = "preprocessing/1/tokenizer/tokenizer.json"
WORD = " umbrella"
SAMPLING = ({}, {"top_p": 0.8, "seed": 5}, {"top_k": 10, "temperature": 0.7})


def nan_row(repository: Path, weight: str, row: int) -> Edit:
    """Writes NaN over a row of a weight of OpenVINO's file.

    Args:
        repository: Its ``openvino_model.xml`` says where the weight lies.
        weight: The weight's name, in half precision.
        row: Which row.
    """
    graph = ElementTree.parse(repository / ENGINE / "openvino_model.xml").getroot()
    (data,) = (layer.find("data") for layer in graph.iter("layer") if layer.get("name") == weight)
    assert data is not None
    assert data.get("element_type") == "f16"
    width = int(str(data.get("shape")).split(",")[1])
    start = int(str(data.get("offset"))) + 2 * width * row

    def edit(content: bytes) -> bytes:
        nan = np.full(width, np.nan, np.float16).tobytes()
        return content[:start] + nan + content[start + len(nan) :]

    return edit


@pytest.mark.faults
def test_a_text_that_is_not_computed_is_an_error(
    repository: Path, tmp_path: Path, own: Callable[..., Service], fault: Callable[..., Fault]
) -> None:
    row = fault(
        "NaN for some prompts",
        f"the embedding of one word is NaN; {len(SAMPLING)} ways to draw, streamed and not, over "
        "gRPC and HTTP",
        "an error for whoever uses the word, never a text; the others get the texts of before, and "
        "nothing restarts",
    )
    token = json.loads((repository / TOKENIZER).read_text())["model"]["vocab"][
        WORD.replace(" ", "\u0120")
    ]
    damaged = edited(
        repository,
        tmp_path / "damaged",
        {
            f"{ENGINE}/openvino_model.bin": nan_row(
                repository, "transformer.vocab_embedding.weight", token
            )
        },
    )
    service, sound = own(damaged), own(repository)
    server = service.server
    silent, told, texts = 0, 0, set()
    prompt = f"Once there was a red{WORD}"
    with Client(service.grpc) as client:
        for sampling in SAMPLING:
            for tokens in (1, 30):
                for model in ("tensorrt_llm_bls", "ensemble"):
                    for ask in (
                        lambda **how: client.generate(prompt, **how),
                        lambda **how: list(client.stream(prompt, **how)),
                    ):
                        try:
                            ask(max_tokens=tokens, model=model, end_id=-1, **sampling)
                            silent += 1
                        except ServerFailed as error:
                            texts.add(str(error))
                            told += 1
    body = json.dumps({"text_input": prompt, "max_tokens": 5}).encode()
    with pytest.raises(urllib.error.HTTPError, match="HTTP Error") as caught:
        urllib.request.urlopen(
            f"{service.http}/v2/models/tensorrt_llm_bls/generate", body, timeout=30
        )
    assert "no numbers (NaN)" in caught.value.read().decode()
    assert all("no numbers (NaN)" in text for text in texts), texts
    row.measured("answers that were errors", told + 1, "")
    row.measured("texts that were not computed", silent, "", at_most=0)
    assert silent == 0
    assert ask_alone(service.grpc, PROMPTS, 40) == ask_alone(sound.grpc, PROMPTS, 40)
    assert service.server == server
    service.wait_idle()


@pytest.mark.faults
def test_an_engine_without_numbers_is_not_served(
    repository: Path, tmp_path: Path, own: Callable[..., Service], fault: Callable[..., Fault]
) -> None:
    fault(
        "NaN for every prompt",
        "a row of the last layer is NaN",
        "serve ends with exit code 6 and says that the engine computes no numbers",
    )
    edit = nan_row(repository, "lm_head.weight", 7)
    damaged = edited(repository, tmp_path / "damaged", {f"{ENGINE}/openvino_model.bin": edit})
    with pytest.raises(AssertionError, match="serve did not start") as caught:
        own(damaged)
    assert "the engine computes no numbers (NaN)" in str(caught.value)
