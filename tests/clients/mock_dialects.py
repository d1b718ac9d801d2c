"""The dialects of Cohere, ollama and re-rankers, for `mock_server`. Standard library only."""

import base64
import hashlib
import struct
from collections.abc import Sequence
from typing import Any

WIDTH = 128
LIMIT = 64  # words; the texts that are meant to be too long have far more
PROMPTS = ("search_query", "search_document", "classification", "clustering")


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        self.status, self.body = status, body
        super().__init__(body)


def drawn(texts: list[str], **settings: Any) -> list[list[float]]:
    """Vectors that depend on text and settings: multiples of 1/256, at most 8 digits in JSON."""
    width = settings.get("matryoshka_dim") or WIDTH
    rows = []
    for text in texts:
        digest = hashlib.shake_128(repr((text, sorted(settings.items()))).encode()).digest(width)
        rows.append([(byte - 128) / 256 for byte in digest])
    return rows


def is_long(text: str) -> bool:
    """Whether a text has more tokens than the model takes."""
    return len(text.split()) > LIMIT


def cohere(version: str, body: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """POST /v1/embed and /v2/embed."""
    texts, width = body["texts"], body.get("output_dimension")
    if body["model"] not in names:
        raise Refusal(404, {"message": f"no model {body['model']}"})
    if (width or 0) > WIDTH or (body.get("truncate") == "NONE" and any(map(is_long, texts))):
        raise Refusal(400, {"message": "invalid request"})
    rows = drawn(texts, task=body.get("input_type"), matryoshka_dim=width)
    kinds = body.get("embedding_types") or []
    as_bytes = [[round(value * 256) for value in row] for row in rows]
    packed = [row[: len(row) // 8] for row in as_bytes]
    forms = {
        "float": rows,
        "int8": as_bytes,
        "uint8": [[value + 128 for value in row] for row in as_bytes],
        "binary": packed,
        "ubinary": [[value + 128 for value in row] for row in packed],
        "base64": [base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() for row in rows],
    }
    answer = {"id": "mock", "texts": texts, "meta": _meta(version, texts)}
    if not kinds:
        return answer | {"response_type": "embeddings_floats", "embeddings": rows}
    embeddings = {kind: forms[kind] for kind in kinds}
    return answer | {"response_type": "embeddings_by_type", "embeddings": embeddings}


def rerank(body: dict[str, Any], names: Sequence[str]) -> Any:
    """POST /rerank in the form of TEI or of Jina, by its keys; /v1/rerank and /v2/rerank."""
    is_tei = "texts" in body
    if not is_tei and body["model"] not in names:
        raise Refusal(404, {"message": f"no model {body['model']}"})
    given = body["texts"] if is_tei else body["documents"]
    texts = [each if isinstance(each, str) else each["text"] for each in given]
    scores = [drawn([body["query"] + text], matryoshka_dim=1)[0][0] + 0.5 for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -scores[index])
    if is_tei:
        return [{"index": index, "score": scores[index]} for index in order]
    found: list[dict[str, Any]] = []
    for index in order[: body.get("top_n")]:
        found.append({"index": index, "relevance_score": scores[index]})
        if body.get("return_documents"):
            found[-1]["document"] = {"text": texts[index]}
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    meta = _meta("2", texts)
    return {"id": "mock", "model": body["model"], "results": found, "usage": usage, "meta": meta}


def ollama(route: str, body: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The routes below /api."""
    details = {"family": "nomic-bert", "families": ["nomic-bert"], "format": "safetensors"}
    listed = [
        {"name": name, "model": name, "modified_at": "2026-01-01T00:00:00Z", "size": 1,
         "digest": "", "details": details} for name in names
    ]  # fmt: skip
    if route in ("GET /api/tags", "GET /api/ps"):
        return {"models": listed}
    if route == "GET /api/version":
        return {"version": "0"}
    if body["model"] not in names:
        raise Refusal(404, {"error": f"model '{body['model']}' not found"})
    if route == "POST /api/show":
        return {"details": details, "model_info": {}, "capabilities": ["embedding"]}
    if route == "POST /api/embeddings":
        return {"embedding": drawn([body["prompt"]])[0]}
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    width = body.get("dimensions")
    if (width or 0) > WIDTH or (body.get("truncate") is False and any(map(is_long, texts))):
        raise Refusal(400, {"error": "invalid request"})
    rows = drawn(texts, matryoshka_dim=width)
    return {"model": body["model"], "embeddings": rows, "prompt_eval_count": len(texts)}


def _meta(version: str, texts: list[str]) -> dict[str, Any]:
    words = sum(len(text.split()) for text in texts)
    return {"api_version": {"version": version}, "billed_units": {"input_tokens": words}}
