"""A ``tensorrt_llm`` model for Triton that says what it is told to, and answers as the C++ backend.

It imports nothing of this project. What it knows is written after ``model_instance_state.cc`` in
triton_backend/inflight_batcher_llm/src of TensorRT-LLM 1.2: a request that does not ask for both
output_ids and sequence_length fails; each row of a batch is a sequence of its own, whose responses
have a batch dimension of 1 and, in a batch, ``batch_index``; every response has the performance
metrics, and the log probabilities of all tokens so far (``LlmRequest::createResult``); the prompt
is put in front unless streaming or excluded; a stop word ends the tokens and is one of them; a
request with ``stop`` is answered with an empty response.

``script.json`` beside it is a list of token ids. A prompt that ends with one of them is answered
with those after it, any other with all of them.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

SCRIPT = json.loads((Path(__file__).parent / "script.json").read_text())
METRICS = {
    "kv_cache_alloc_new_blocks": np.int32,
    "kv_cache_reused_blocks": np.int32,
    "kv_cache_alloc_total_blocks": np.int32,
    "arrival_time_ns": np.int64,
    "first_scheduled_time_ns": np.int64,
    "first_token_time_ns": np.int64,
    "last_token_time_ns": np.int64,
    "acceptance_rate": np.float32,
    "total_accepted_draft_tokens": np.int32,
    "total_draft_tokens": np.int32,
}


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.exclude = parameters["exclude_input_in_output"]["string_value"] == "true"

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            wanted = request.requested_output_names()
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            if "stop" in inputs and inputs["stop"].item():
                responses = [pb_utils.InferenceResponse([])]
            elif missing := [n for n in ("output_ids", "sequence_length") if n not in wanted]:
                error = (
                    "Error encountered while populating response: "
                    f"{missing[0]} tensor must be present in list of output tensors"
                )
                responses = [pb_utils.InferenceResponse([], pb_utils.TritonError(error))]
            else:
                responses = [
                    pb_utils.InferenceResponse(
                        [pb_utils.Tensor(name, value) for name, value in outputs.items()]
                    )
                    for outputs in list(answers(inputs, self.exclude))
                ]
            for number, response in enumerate(responses, 1):
                last = number == len(responses)
                sender.send(
                    response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
                )


def answers(inputs, exclude):
    """The outputs of every response; those of the sequences alternate."""
    batch = inputs["input_ids"].shape[0]
    sequences = [sequence(inputs, row, exclude) for row in range(batch)]
    for step in range(max(map(len, sequences))):
        for row, pieces in enumerate(sequences):
            if step >= len(pieces):
                continue
            outputs = {
                "output_ids": np.array([[pieces[step]]], np.int32),
                "sequence_length": np.array([[len(pieces[step])]], np.int32),
            }
            if batch > 1:
                outputs["batch_index"] = np.array([[row]], np.int32)
            if value(inputs, "return_perf_metrics", row):
                outputs |= {name: np.full((1, 1), step, dtype) for name, dtype in METRICS.items()}
            if value(inputs, "return_log_probs", row):
                # The first token scores -1, the second -2, and so on.
                scores = -np.arange(1, 1 + sum(map(len, pieces[: step + 1])), dtype=np.float32)
                outputs["cum_log_probs"] = scores.sum(dtype=np.float32).reshape(1, 1)
                outputs["output_log_probs"] = scores.reshape(1, 1, -1)
            if value(inputs, "return_num_input_tokens", row):
                outputs["num_input_tokens"] = np.full((1, 1), length(inputs, row), np.int32)
            if value(inputs, "return_num_output_tokens", row):
                outputs["num_output_tokens"] = np.full((1, 1), len(pieces[step]), np.int32)
            yield outputs


def sequence(inputs, row, exclude):
    """The tokens of one row, a list for each response."""
    prompt = inputs["input_ids"][row, : length(inputs, row)].tolist()
    begin = SCRIPT.index(prompt[-1]) + 1 if prompt[-1] in SCRIPT else 0
    tokens = SCRIPT[begin:][: value(inputs, "request_output_len", row)]
    words = inputs.get("stop_words_list")
    if words is not None and words.size:
        ids, ends = words[row].tolist()
        ends = [end for end in ends if end > 0]
        for start, end in zip([0, *ends], ends, strict=False):
            word = ids[start:end]
            for place in range(len(tokens)):
                if tokens[place : place + len(word)] == word:
                    tokens = tokens[: place + len(word)]
                    break
    if value(inputs, "streaming", row):
        return [[token] for token in tokens]
    own = value(inputs, "exclude_input_in_output", row)
    return [tokens if (exclude if own is None else own) else prompt + tokens]


def length(inputs, row):
    return value(inputs, "input_lengths", row)


def value(inputs, name, row):
    return inputs[name].reshape(-1)[row].item() if name in inputs else None
