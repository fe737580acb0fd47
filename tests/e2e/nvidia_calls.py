"""The calls that NVIDIA's example clients make, with plain tritonclient.

Same tensors, shapes and order of calls as ``triton_backend/inflight_batcher_llm/client`` and
``triton_backend/tools`` of TensorRT-LLM 1.2; what is read from a response is read as they read it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

WAIT_S = 60.0


def tensor(name: str, value: Any, module: Any = grpcclient) -> Any:
    """An input of a NumPy array; ``module`` is tritonclient's for gRPC or HTTP."""
    made = module.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
    made.set_data_from_numpy(value)
    return made


def text_arrays(
    prompt: str, output_len: int, *, streaming: bool, **more: Any
) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of ``end_to_end_grpc_client.py`` for one prompt, by name.

    Args:
        more: Arrays of further inputs.
    """
    text = np.array([[prompt]]).astype(object)
    return {
        "text_input": text,
        "max_tokens": np.ones_like([[prompt]]).astype(np.int32) * output_len
        if prompt
        else np.array([[output_len]], np.int32),
        "stream": np.array([[streaming]], bool),
        "beam_width": np.array([[1]], np.int32),
        "temperature": np.array([[1.0]], np.float32),
        "exclude_input_in_output": np.array([[False]], bool),
        **more,
    }


def streamed(
    url: str,
    model: str,
    arrays: Mapping[str, Any],
    outputs: Sequence[str] | None = None,
    *,
    request_id: str = "",
) -> list[Any]:
    """Every response to a request over a stream of its own; an error is raised."""
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            model,
            [tensor(name, value) for name, value in arrays.items()],
            outputs=None if outputs is None else requested(outputs),
            request_id=request_id,
        )
        client.stop_stream()  # waits for the server to close
    return drained(answers)


def requested(names: Sequence[str]) -> list[Any]:
    """Outputs to ask for."""
    return [grpcclient.InferRequestedOutput(name) for name in names]


def drained(answers: queue.Queue[Any]) -> list[Any]:
    """What a callback put into a queue; an error is raised."""
    results = []
    while not answers.empty():
        result = answers.get(block=False)
        if isinstance(result, InferenceServerException):
            raise result
        results.append(result)
    return results


def texts(results: Sequence[Any], batch_size: int = 1, *, overwrite: bool = False) -> list[str]:
    """The texts as ``run_inference`` puts them together.

    Args:
        overwrite: ``--overwrite-output-text``: each response holds the whole text so far.
    """
    whole = [""] * batch_size
    for result in results:
        output = result.as_numpy("text_output")
        index = result.as_numpy("batch_index")
        index = 0 if index is None else index[0][0]
        new = output[0].decode("utf-8")
        whole[index] = new if overwrite else whole[index] + new
    return whole


def stop_inputs() -> list[Any]:
    """``prepare_stop_signals`` of ``inflight_batcher_llm_client.py``."""
    arrays = {
        "input_ids": np.empty([1, 1], np.int32),
        "input_lengths": np.zeros([1, 1], np.int32),
        "request_output_len": np.array([[0]], np.int32),
        "stop": np.array([[True]], bool),
    }
    return [tensor(name, value) for name, value in arrays.items()]


def id_arrays(ids: Sequence[int], output_len: int, *, streaming: bool, **more: Any) -> Any:
    """The inputs of ``inflight_batcher_llm_client.py`` by name."""
    return {
        "input_ids": np.array([ids], np.int32),
        "input_lengths": np.array([[len(ids)]], np.int32),
        "request_output_len": np.array([[output_len]], np.int32),
        "beam_width": np.array([[1]], np.int32),
        "temperature": np.array([[1.0]], np.float32),
        "streaming": np.array([[streaming]], bool),
        "end_id": np.array([[-1]], np.int32),
        "pad_id": np.array([[2]], np.int32),
        "runtime_top_k": np.array([[1]], np.int32),
        "runtime_top_p": np.array([[0.0]], np.float32),
        **more,
    }


def stopped_after(url: str, arrays: Mapping[str, Any], seconds: float) -> list[Any]:
    """``--streaming --stop-after-ms``: the responses to a request that is stopped by its id."""
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        inputs = [tensor(name, value) for name, value in arrays.items()]
        client.async_stream_infer("tensorrt_llm", inputs, request_id="to stop")
        time.sleep(seconds)
        client.async_stream_infer(
            "tensorrt_llm", stop_inputs(), request_id="to stop", parameters={"Streaming": True}
        )
        client.stop_stream()
    return drained(answers)
