"""A server on loopback with answers of the right shape, which logs every request.

The dialects of OpenAI, text-embeddings-inference (TEI) and nomic are here, those of Cohere, ollama
and the re-rankers in `mock_dialects`. Vectors are drawn from a hash of text and settings.
`record.py` runs client libraries against it. Standard library only.
"""

import base64
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from mock_dialects import PROMPTS, WIDTH, Refusal, cohere, drawn, is_long, ollama, rerank


class MockServer:
    """Serves `names`; `requests` lists what arrived with the status of the answer."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.requests: list[dict[str, Any]] = []
        mock = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                mock.answer(self)

            def do_POST(self) -> None:
                mock.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "MockServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        raw = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        body = json.loads(raw) if raw else None
        try:
            status, answer = 200, self._route(f"{request.command} {unquote(request.path)}", body)
        except Refusal as refusal:
            status, answer = refusal.status, refusal.body
        self.requests.append(
            {
                "method": request.command,
                "path": request.path,
                "headers": dict(request.headers.items()),
                "body": body,
                "status": status,
            }
        )
        data = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _route(self, route: str, body: Any) -> Any:
        if route in ("POST /v1/embeddings", "POST /embeddings"):
            return self._openai(body)
        if route in ("POST /", "POST /embed"):
            return self._tei(body)
        if route == "POST /v1/embedding/text":
            return self._nomic(body)
        if route in ("POST /v1/embed", "POST /v2/embed"):
            return cohere(route[6], body, self.names)
        if route in ("POST /rerank", "POST /v1/rerank", "POST /v2/rerank"):
            return rerank(body, self.names)
        if " /api/" in route:
            return ollama(route, body, self.names)
        if route == "GET /v1/models":
            return {"object": "list", "data": [_model(name) for name in self.names]}
        if route.startswith("GET /v1/models/"):
            name = route.removeprefix("GET /v1/models/")
            self._check_openai_model(name)
            return _model(name)
        if route == "GET /v1/user":
            return {}
        raise Refusal(404, {"detail": f"no route {route}"})

    def _check_openai_model(self, name: str) -> None:
        if name not in self.names:
            raise Refusal(404, _openai_error(f"no model {name}", "model_not_found", "model"))

    def _openai(self, body: dict[str, Any]) -> dict[str, Any]:
        self._check_openai_model(body["model"])
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if not texts:
            raise Refusal(400, _openai_error("input is empty", None, "input"))
        if not all(isinstance(text, str) for text in texts):
            message = "token ids: with langchain-openai set check_embedding_ctx_length=False"
            raise Refusal(400, _openai_error(message, None, "input"))
        if any(is_long(text) for text in texts):
            raise Refusal(400, _openai_error("too long", "context_length_exceeded", "input"))
        if (body.get("dimensions") or 0) > WIDTH:
            raise Refusal(400, _openai_error(f"{body['dimensions']}: too wide", None, "dimensions"))
        rows = drawn(texts, **_settings(body.get("dimensions"), body.get("task_type")))
        if body.get("encoding_format") == "base64":
            rows = [base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() for row in rows]
        data = [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(rows)
        ]
        return {"object": "list", "data": data, "model": body["model"], "usage": _usage(texts)}

    def _tei(self, body: dict[str, Any]) -> Any:
        inputs = body["inputs"]
        if isinstance(inputs, dict):
            texts = [inputs["source_sentence"], *inputs["sentences"]]
            first, *others = drawn(texts, normalize_embeddings=True)
            return [sum(a * b for a, b in zip(first, row, strict=True)) for row in others]
        texts = inputs if isinstance(inputs, list) else [inputs]
        if body.get("truncate") is False and any(is_long(text) for text in texts):
            raise Refusal(422, {"error": "too long", "error_type": "Validation"})
        prompt = body.get("prompt_name")
        if prompt is not None and prompt not in PROMPTS:
            raise Refusal(422, {"error": f"no prompt {prompt}", "error_type": "Validation"})
        settings = _settings(body.get("dimensions"), prompt)
        if body.get("normalize") is False:
            settings["normalize_embeddings"] = False
        return drawn(texts, **settings)

    def _nomic(self, body: dict[str, Any]) -> dict[str, Any]:
        for name, wrong in (
            ("model", body["model"] not in self.names),
            ("dimensionality", not 1 <= _given(body.get("dimensionality"), WIDTH) <= WIDTH),
            ("long_text_mode", body.get("long_text_mode") not in (None, "truncate", "mean")),
        ):
            if wrong:
                message = f"wrong value {body[name]}"
                detail = {"loc": ["body", name], "msg": message, "type": "value_error"}
                raise Refusal(422, {"detail": [detail]})
        task = body.get("task_type") or "search_document"
        settings = _settings(body.get("dimensionality") or WIDTH, task)
        if body.get("long_text_mode", "mean") == "mean":
            settings["truncate"] = "mean"
        rows = drawn(body["texts"], **settings)
        return {"embeddings": rows, "usage": _usage(body["texts"]), "model": body["model"]}


def _settings(width: int | None, prompt: str | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"prompt_name": prompt} if prompt else {}
    return settings | ({"matryoshka_dim": width} if width else {"normalize_embeddings": True})


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _usage(texts: list[str]) -> dict[str, int]:
    words = sum(len(text.split()) for text in texts)
    return {"prompt_tokens": words, "total_tokens": words}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "nomicbert"}


def _openai_error(message: str, code: str | None, param: str) -> dict[str, Any]:
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
