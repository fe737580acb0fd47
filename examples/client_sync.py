"""Streams a completion with this project's client.  usage: client_sync.py [HOST:PORT]"""

from __future__ import annotations

import sys

from trtllm_client import Client, ClientError

URL = sys.argv[1] if len(sys.argv) > 1 else "localhost:8001"

try:
    # Leaving a with block closes the connection, or ends a request that is still running.
    with Client(URL) as client:
        with client.stream("Once upon a time", max_tokens=40, stop_words=(".",)) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)
        whole = client.generate("Once upon a time", max_tokens=40)
        print(
            f"\n{whole.text}\n{whole.num_output_tokens} tokens, finished by {whole.finish_reason}"
        )
except ClientError as error:
    sys.exit(f"error: {error}")
