"""Record the requests that client libraries send: tests/clients/recorded/CLIENT.json.

    python tests/clients/record.py CLIENTS_PYTHON CLIENT...
    python tests/clients/record.py node js_CLIENT...

Runs `call.py` with that interpreter, or `js/call.mjs`, against `mock_server.py` and keeps each
distinct request with the status of the answer. `tests/serve/test_recorded.py` sends them to the
real server.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from mock_server import MockServer  # noqa: E402

SHORT, LONG = "nomic-embed-text-v1.5", "nomic-ai/nomic-embed-text-v1.5"
RERANKER = "bge-reranker-base"
# Headers that a server may react to; the others differ from run to run or say nothing.
KEPT = ("accept", "accept-encoding", "authorization", "connection", "content-type", "user-agent")


def record(python: str, client: str) -> list[dict[str, Any]]:
    """Run one client's calls; its distinct requests by route and headers, in a fixed order."""
    model = RERANKER if "rerank" in client else SHORT if "nomic" in client else LONG
    script = "js/call.mjs" if client.startswith("js_") else "call.py"
    with MockServer(SHORT, LONG, RERANKER) as server, tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        command = [python, str(HERE / script), client.removeprefix("js_"), server.url, model]
        subprocess.run([*command, str(out)], check=True, timeout=300)
        attempts = json.loads(out.read_text("utf-8"))["beyond loopback"]["attempts"]
        print(f"{client}: {len(server.requests)} requests; beyond loopback: {attempts}")  # noqa: T201
    groups: dict[str, set[str]] = {}
    for request in server.requests:
        headers = {name.lower(): value for name, value in request["headers"].items()}
        kept = {name: headers[name] for name in KEPT if name in headers}
        group = {"method": request["method"], "path": request["path"], "headers": kept}
        each = {"status": request["status"], "body": request["body"]}
        groups.setdefault(_json(group), set()).add(_json(each))
    return [
        {**json.loads(group), "requests": [json.loads(each) for each in sorted(requests)]}
        for group, requests in sorted(groups.items())
    ]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _lines(group: dict[str, Any]) -> str:
    """One group with a request per line."""
    requests = group.pop("requests")
    opened = _json(group).removesuffix("}")
    return f'{opened}, "requests": [\n' + ",\n".join(map(_json, requests)) + "\n]}"


def main(python: str, *clients: str) -> None:
    for client in clients:
        groups = [_lines(group) for group in record(python, client)]
        text = "[\n" + ",\n".join(groups) + "\n]\n"
        (HERE / "recorded" / f"{client}.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
