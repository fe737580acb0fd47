"""Gets a completion with a plain infer().  usage: tritonclient_unary.py [HOST:PORT]

The repository must be built with ``serve.decoupled: both``, which adds the model called here.
"""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

URL = sys.argv[1] if len(sys.argv) > 1 else "localhost:8001"

text = grpcclient.InferInput("text_input", [1, 1], "BYTES")
text.set_data_from_numpy(np.array([["Once upon a time"]], object))
length = grpcclient.InferInput("max_tokens", [1, 1], "INT32")
length.set_data_from_numpy(np.array([[40]], np.int32))

with grpcclient.InferenceServerClient(URL) as client:
    try:
        answer = client.infer("tensorrt_llm_bls_unary", [text, length])
    except InferenceServerException as error:
        sys.exit(f"error: {error}")
print(answer.as_numpy("text_output")[0].decode())
