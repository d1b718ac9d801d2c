"""The settings of a server, checked before anything is loaded."""

import ipaddress
import os
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from nomicbert_kernels import Backend

OnLong = Literal["error", "end", "chunk", "mean"]
MIB = 1 << 20
# Option of `nomicbert serve` -> the setting that takes several of it.
PLURALS = {
    "model": "models",
    "served_model_name": "served_model_names",
    "model_alias": "model_aliases",
    "device": "devices",
    "cors_origin": "cors_origins",
    "api_key": "api_keys",
}


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What `nomicbert serve` can be told; its options document each value.

    Attributes:
        models: folders or repository ids; the first is the default model.
        devices: names; each gets a compute thread and a copy of every model.
        threads: CPU threads of one compute thread, or None for torch's default.
        served_model_names: further names of the first model.
        model_aliases: alias -> name of a model.
        any_model_name: answer a request for an unknown model with the first one.
        auto_truncate: TEI's default for requests that do not say.
        on_long: treatment of long texts in place of every dialect's default, or None.
        max_length: tokens per text, or None for the checkpoint's limit.
        max_batch_tokens: tokens per batch, or None to measure a good size.
        cache_bytes: memory for vectors of earlier requests; 0 for none.
        max_waiting_tokens: tokens that may wait, or None for 30 seconds of work.
        max_queue_seconds: a request that is not answered by then is dropped.
        head_seconds, body_seconds: time limits for reading a request.
        drain_seconds: after SIGTERM, requests are accepted for this long.
        grace_seconds: after that, requests that are being computed have this long.
        stuck_seconds: a batch that takes longer makes the server report that it is not alive; with
            `isolate`, its worker is started again.
        isolate: each device computes in a process of its own.
        worker_memory: bytes of address space of such a process, or None for any.
        otlp_endpoint: base URL of a collector for traces, or None for none.
        otlp_service_name: name of this service there.
    """

    models: tuple[str, ...]
    revision: str | None = None
    local_files_only: bool = False
    dtype: str = "float32"
    devices: tuple[str, ...] = ("auto",)
    backend: Backend = "auto"
    rotary_scaling_factor: float | None = None
    threads: int | None = None
    served_model_names: tuple[str, ...] = ()
    model_aliases: tuple[tuple[str, str], ...] = ()
    any_model_name: bool = False
    default_prompt_name: str | None = None
    default_prompt: str | None = None
    auto_truncate: bool = True
    on_long: OnLong | None = None
    max_length: int | None = None
    max_client_batch_size: int | None = None
    max_batch_tokens: int | None = None
    tokenizer_threads: int = 2
    cache_bytes: int = 64 * MIB
    max_waiting_tokens: int | None = None
    max_waiting_requests: int = 1024
    max_queue_seconds: float = 600.0
    payload_limit: int = 32 * MIB
    max_response_bytes: int = 256 * MIB
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    keep_alive_seconds: int = 75
    host: str = "127.0.0.1"
    port: int = 8080
    uds: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    open_metrics: bool = False
    drain_seconds: float = 5.0
    grace_seconds: float = 25.0
    stuck_seconds: float = 120.0
    isolate: bool = False
    worker_memory: int | None = None
    access_log: bool = True
    otlp_endpoint: str | None = None
    otlp_service_name: str = "nomicbert"

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work.

        Raises: ValueError: it names the option.
        """
        if not self.models:
            raise ValueError("give at least one --model")
        if len(set(self.models)) < len(self.models):
            raise ValueError("a --model is given twice")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both or neither")
        if self.default_prompt is not None and self.default_prompt_name is not None:
            raise ValueError("give --default-prompt or --default-prompt-name, not both")
        if not all(key and key.isascii() and key.isprintable() for key in self.api_keys):
            raise ValueError("an --api-key must be printable ASCII, and not empty")
        if self.isolate and os.name != "posix":
            raise ValueError("--isolate needs Linux or macOS: this system hands no sockets on")
        if self.worker_memory is not None and not self.isolate:
            raise ValueError("--worker-memory limits the processes of --isolate: give both")
        for alias, name in self.model_aliases:
            if not (alias and name):
                raise ValueError("--model-alias must be ALIAS=NAME")
        if self.otlp_endpoint is not None:
            place = urlsplit(self.otlp_endpoint)
            if place.scheme not in ("http", "https") or not place.hostname:
                raise ValueError(
                    "--otlp-endpoint must be a URL for OTLP/HTTP, as http://collector:4318, not "
                    f"{self.otlp_endpoint[:200]!r}"
                )
        if not self.otlp_service_name:
            raise ValueError("--otlp-service-name must not be empty")

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can connect."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
