"""Streams a completion with plain tritonclient.  usage: tritonclient_streamed.py [HOST:PORT]"""

from __future__ import annotations

import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

URL = sys.argv[1] if len(sys.argv) > 1 else "localhost:8001"


def tensor(name: str, value: object, datatype: str, dtype: type) -> grpcclient.InferInput:
    """One value; every input of the text models has the shape [prompts, 1]."""
    made = grpcclient.InferInput(name, [1, 1], datatype)
    made.set_data_from_numpy(np.array([[value]], dtype))
    return made


inputs = [
    tensor("text_input", "Once upon a time", "BYTES", object),
    tensor("max_tokens", 40, "INT32", np.int32),
    # False: the whole answer comes in one response, over the stream all the same.
    tensor("stream", True, "BOOL", bool),
]
responses: queue.Queue[Any] = queue.Queue()
with grpcclient.InferenceServerClient(URL) as client:
    client.start_stream(lambda result, error: responses.put(error or result))
    client.async_stream_infer(
        "tensorrt_llm_bls",
        inputs,
        outputs=[grpcclient.InferRequestedOutput("text_output")],
        enable_empty_final_response=True,
    )
    while True:
        response = responses.get(timeout=60)
        if isinstance(response, Exception):
            sys.exit(f"error: {response}")
        text = response.as_numpy("text_output")
        if text is not None:
            print(text[0].decode(), end="", flush=True)
        if response.get_response().parameters["triton_final_response"].bool_param:
            break
print()
