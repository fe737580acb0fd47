#!/bin/sh
# Gets a whole completion over HTTP.  usage: generate.sh [HOST:PORT]
set -eu
curl --silent --show-error --fail-with-body "http://${1:-localhost:8000}/v2/models/tensorrt_llm_bls/generate" \
    --data '{"text_input": "Once upon a time", "max_tokens": 40}'
echo
