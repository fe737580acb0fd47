"""``tensorrt_llm`` in Python: NVIDIA's tensors in front of an engine that batches in flight.

``execute`` only queues requests; the engine's thread (engine_loop.py) batches them in flight and
the responder's thread (responder.py) sends what comes out. Which engine it is, opening.py knows.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .admission import check_stream
from .ending import end_process
from .failures import NOT_TEXT, id_of, unexpected
from .generation import Generation
from .hold import Hold
from .lane_frames import PARAMETER
from .lanes import LaneCall, Lanes
from .metrics import EngineMetrics
from .opening import open_engine
from .orphan import end_with_parent
from .parameters import read_parameters
from .receipts import Book
from .request import RequestError
from .request_parameters import unknown_parameters
from .responder import Responder
from .responses import (
    BatchSender,
    ResponseStream,
    empty_response,
    of_ensemble,
    send_error,
)
from .settings import read_settings
from .statuses import asks
from .tensors import Inputs, check_outputs, check_policy, is_stop, read_answer, read_request

SWITCH_INTERVAL = 0.0005
"""Seconds a thread waits for the interpreter lock before it asks for it. Python's default, 5 ms, is
several steps of a small engine, and taking in one request needs the lock several times."""


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the engine and warms it up; the model is ready when this returns."""
        end_with_parent()
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._settings = read_settings(
            Path(args["model_repository"]).parent,
            read_parameters(args),
            decoupled=pb_utils.using_decoupled_model_transaction_policy(
                json.loads(args["model_config"])
            ),
        )
        self._engine = open_engine(self._settings)
        self._open: dict[ResponseStream, Generation] = {}
        self._book = Book()
        self._lanes = _open_lanes(args["model_name"])
        self._responder = Responder(
            [
                (self._settings.cancellation_check_period, self._cancel_abandoned),
                (self._settings.stats_check_period, self._publish_metrics),
            ],
            Hold(self._settings.max_token_hold, len(os.sched_getaffinity(0))),
        )
        self._loop = self._engine.loop(
            after_step=self._responder.publish,
            broken=lambda error: end_process(error, self._responder.close),
        )
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._metrics = EngineMetrics(self._loop.stats, self._loop.levels, labels)
        self._responder.start()
        self._loop.start()
        pb_utils.Logger.log_info(
            f"engine {self._settings.engine_dir}: {self._settings.max_batch_size} sequences, "
            f"{self._settings.num_kv_blocks} KV blocks, {self._settings.max_seq_len} tokens each"
        )

    def execute(self, requests: list[Any]) -> None:
        """Queues requests; their responses come from the responder's thread."""
        with self._responder.let_in():
            for request in requests:
                self._take_or_refuse(request)

    def finalize(self) -> None:
        """Ends the threads; unfinished requests get an error."""
        self._engine.close()
        self._loop.close()
        self._responder.close()
        if self._lanes is not None:
            self._lanes.close()
        self._book.close()

    def _take_or_refuse(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            self._take(request, sender)
        except RequestError as error:
            self._loop.stats.ended("refused")
            send_error(sender, error, with_status=asks(request))
        except Exception as error:
            self._loop.stats.ended("failed")
            failure = RequestError(unexpected(error), "INTERNAL")
            send_error(sender, failure, with_status=asks(request))

    def _take(self, request: Any, sender: Any) -> None:
        inputs, client_id = Inputs.of(request), id_of(request)
        if client_id is None:
            raise RequestError(NOT_TEXT)
        if is_stop(inputs):
            # Before anything is refused: what it is to stop would run on.
            if not client_id:
                raise RequestError("a stop request must have the request id of the one to stop")
            self._loop.cancel_client_id(client_id)
            empty_response(sender)
            return
        if reason := unknown_parameters(request):
            raise RequestError(reason)
        rows = inputs.rows()
        check_policy(inputs, len(rows), self._settings)
        wanted = frozenset(request.requested_output_names())
        check_outputs(wanted)
        if len(rows) > 1:
            sender = BatchSender(sender, len(rows))
        with_status = asks(request)
        streams, requests = [], []
        call: LaneCall | None = None
        for index, row in enumerate(rows):
            wish = read_request(row, client_id, self._settings)
            answer = read_answer(
                row, wanted, wish, self._settings, batch_index=index if len(rows) > 1 else None
            )
            if answer.streaming:
                check_stream(wish, self._settings)
                call = self._call_of(request) if with_status and len(rows) == 1 else None
            stream = ResponseStream(
                sender, answer, self._responder.ready, with_status=with_status, call=call
            )
            streams.append(stream)
            requests.append(wish)
        try:
            generations = self._loop.submit_all(list(zip(requests, streams, strict=True)))
        except BaseException:
            if call is not None:
                call.end()
            raise
        if of_ensemble(wanted):
            for stream in streams:
                stream.ticket = self._book.issue()
        if not with_status or call is not None:
            # A model that called this one sees itself whether its client is there: cancellation
            # does not pass from model to model, and each look is a message to the server and back.
            # Whether the model itself is there, a lane says without one.
            self._open.update(zip(streams, generations, strict=True))

    def _call_of(self, request: Any) -> LaneCall | None:
        """Where the answer to another model's request goes, if not to Triton."""
        if self._lanes is None:
            return None
        return self._lanes.find(json.loads(request.parameters() or "{}").get(PARAMETER))

    def _cancel_abandoned(self) -> None:
        for stream, generation in list(self._open.items()):
            if stream.closed:
                del self._open[stream]
                if stream.ticket is not None:
                    self._book.retire(stream.ticket)
            elif stream.is_cancelled() or (
                stream.ticket is not None and self._book.came_back(stream.ticket)
            ):
                self._loop.cancel(generation)

    def _publish_metrics(self) -> None:
        self._metrics.publish()


def _open_lanes(model: str) -> Lanes | None:
    try:
        return Lanes(model)
    except OSError as error:
        pb_utils.Logger.log_warn(f"tokens go from model to model by Triton alone: {error}")
        return None
