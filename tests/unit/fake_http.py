"""Triton's generate endpoints and its metrics, in front of a fake model."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.verify.requests import request
from tests.unit.client.fake_model import FakeModel
from tests.unit.client.fake_triton import Asked, FakeTriton


class _Context:
    """What a streamed call is to the model: active until nobody reads it."""

    def __init__(self) -> None:
        self.active = True

    def is_active(self) -> bool:
        return self.active


class HttpSide:
    """The HTTP side of a fake server, inside a ``with`` block.

    Args:
        broken: ``other_text``, ``as_500``, ``no_family``, ``stands_still`` or ``never_active``.
    """

    def __init__(self, model: FakeModel, server: FakeTriton, broken: str = "") -> None:
        side = self
        self.model, self.server, self.broken = model, server, broken

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, side.metrics())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model, way = self.path.split("/")[3:5]
                message = request(model, {name: [value] for name, value in body.items()})
                self._stream(Asked(message), whole=way == "generate")

            def _stream(self, asked: Asked, *, whole: bool) -> None:
                context, begun = _Context(), False
                for response in side.model.answer(asked, context):
                    if response.error_message:
                        status = 500 if side.broken == "as_500" else 400
                        self._send(status, json.dumps({"error": response.error_message}))
                        return
                    if not begun:
                        begun = True
                        self._send(200, "")
                    raw = response.infer_response.raw_output_contents
                    text = raw[0][4:].decode() if raw else ""
                    if side.broken == "other_text":
                        text += "!"
                    data = json.dumps({"text_output": text})
                    try:
                        self.wfile.write((data if whole else f"data: {data}\n\n").encode())
                        self.wfile.flush()
                    except OSError:
                        context.active = False

            def _send(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> HttpSide:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def metrics(self) -> str:
        """The text of ``/metrics``."""
        served = 0 if self.broken == "stands_still" else self.model.served
        active = 0 if self.broken == "never_active" else self.model.active
        lines: Mapping[str, float] = {
            'nv_inference_request_success{model="tensorrt_llm_bls",version="1"}': served,
            'nv_inference_request_failure{model="tensorrt_llm_bls",reason="OTHER"}': 0,
            'nv_inference_count{model="tensorrt_llm_bls"}': served,
            'nv_inference_request_duration_us{model="tensorrt_llm_bls"}': 1.5e3,
            'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active"}': active,
            'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used"}': 0,
        }
        without = "nv_inference_count" if self.broken == "no_family" else "none"
        return "# HELP\n" + "".join(
            f"{name} {value}\n" for name, value in lines.items() if not name.startswith(without)
        )
