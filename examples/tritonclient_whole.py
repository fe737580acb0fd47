"""Gets a whole completion from a model that streams.  usage: tritonclient_whole.py [HOST:PORT]

Triton refuses ``infer()`` to such a model, so the one response comes over a stream; see
tritonclient_unary.py for a model that answers ``infer()``.
"""

from __future__ import annotations

import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

URL = sys.argv[1] if len(sys.argv) > 1 else "localhost:8001"

text = grpcclient.InferInput("text_input", [1, 1], "BYTES")
text.set_data_from_numpy(np.array([["Once upon a time"]], object))
length = grpcclient.InferInput("max_tokens", [1, 1], "INT32")
length.set_data_from_numpy(np.array([[40]], np.int32))

responses: queue.Queue[Any] = queue.Queue()
with grpcclient.InferenceServerClient(URL) as client:
    client.start_stream(lambda result, error: responses.put(error or result))
    client.async_stream_infer("tensorrt_llm_bls", [text, length])
    response = responses.get(timeout=60)
if isinstance(response, Exception):
    sys.exit(f"error: {response}")
print(response.as_numpy("text_output")[0].decode())
