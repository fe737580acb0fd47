#!/bin/sh
# Streams a completion over HTTP, one server-sent event a piece.  usage: generate_stream.sh [HOST:PORT]
set -eu
curl --silent --show-error --no-buffer --fail-with-body "http://${1:-localhost:8000}/v2/models/tensorrt_llm_bls/generate_stream" \
    --data '{"text_input": "Once upon a time", "max_tokens": 40, "stream": true}'
