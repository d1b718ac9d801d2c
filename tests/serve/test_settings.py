"""Settings that contradict each other are refused before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nomicbert.serve import settings as settings_module
from nomicbert.serve.settings import ServeSettings


def settings(**changes: Any) -> ServeSettings:
    return ServeSettings(**({"models": ("a",)} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "at least one --model"),
        ({"models": ("a", "b", "a")}, "--model is given twice"),
        ({"tls_cert": "a"}, "--tls-cert and --tls-key"),
        ({"tls_key": "a"}, "--tls-cert and --tls-key"),
        ({"default_prompt": "", "default_prompt_name": "a"}, "not both"),
        ({"api_keys": ("good", "")}, "--api-key must be printable"),
        ({"api_keys": ("ü",)}, "--api-key must be printable"),
        ({"api_keys": ("a\n",)}, "--api-key must be printable"),
        ({"model_aliases": (("", "a"),)}, "--model-alias must be ALIAS=NAME"),
        ({"worker_memory": 1 << 33}, "--worker-memory limits the processes of --isolate"),
        (
            {"otlp_endpoint": "collector:4317"},
            "--otlp-endpoint must be a URL",
        ),
        ({"otlp_endpoint": "http://"}, "--otlp-endpoint must be a URL"),
        ({"otlp_endpoint": "grpc://collector:4317"}, "--otlp-endpoint must be a URL"),
        ({"otlp_service_name": ""}, "--otlp-service-name must not be empty"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_no_workers_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(isolate=True, worker_memory=1 << 33).isolate
    monkeypatch.setattr(settings_module, "os", SimpleNamespace(name="nt"))
    with pytest.raises(ValueError, match="--isolate needs Linux or macOS"):
        settings(isolate=True)


def test_accepted() -> None:
    settings(
        models=("a", "b"), tls_cert="c", tls_key="k", default_prompt="", api_keys=("a key!",),
        model_aliases=(("x", "a"),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.0.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False),
     ("", False)],
)  # fmt: skip
def test_who_can_connect(host: str, local: bool) -> None:
    assert settings(host=host).is_local == local
    assert settings(host=host, uds="/run/a").is_local
