"""`nomicbert serve`: embed texts over HTTP."""

import importlib.util
import os
import sys
from enum import Enum
from typing import Annotated, Any

import typer

from nomicbert.cli import console, options
from nomicbert.cli.serve_environment import from_tei_environment
from nomicbert.errors import to_install

EXAMPLES = """Examples:

nomicbert serve -m nomic-ai/nomic-embed-text-v1.5

nomicbert serve -m ./model --host 0.0.0.0 --api-key nk-secret --device cuda

Every option can be set by a variable: --max-length is NOMICBERT_MAX_LENGTH. docs/serve.md has the
protocols, limits and metrics.
"""


class OnLongName(str, Enum):
    """What --on-long takes."""

    error = "error"
    end = "end"
    chunk = "chunk"
    mean = "mean"


class LogFormatName(str, Enum):
    """What --log-format takes."""

    json = "json"
    text = "text"


MIB = 1 << 20


def serve(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Folder or repository id. Repeat to serve several; the first is the default.",
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Further name of the first model. Repeatable."),
    ] = None,
    model_alias: Annotated[
        list[str] | None,
        typer.Option(metavar="ALIAS=NAME", help="Another name for any model. Repeatable."),
    ] = None,
    any_model_name: Annotated[
        bool, typer.Option("--any-model-name", help="Answer unknown names with the first model.")
    ] = False,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    dtype: options.Dtype = options.DtypeName.float32,
    device: options.Devices = ["auto"],  # noqa: B006
    backend: options.Backend = options.BackendName.auto,
    rotary_scaling_factor: options.RotaryScalingFactor = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads of a compute thread.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 takes a free one.")
    ] = 8080,
    uds: Annotated[
        str | None, typer.Option(metavar="PATH", help="Unix socket in place of host and port.")
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="Certificate chain (PEM) for https.")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(metavar="FILE", help="Private key (PEM) of the certificate.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Web origin that browsers may call from. Repeatable."),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Accept requests with this key only. Repeatable."),
    ] = None,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="/metrics needs no key.")
    ] = False,
    default_prompt_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Prompt of requests that name none, but for nomic's."),
    ] = None,
    default_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The same, as a text.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens per text. Default: the checkpoint's."),
    ] = None,
    on_long: Annotated[
        OnLongName | None,
        typer.Option(
            help="Treatment of long texts, whatever a request asks. Default: per protocol."
        ),
    ] = None,
    auto_truncate: Annotated[
        bool, typer.Option(help="TEI: cut long texts unless the request says truncate: false.")
    ] = True,
    max_client_batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Texts per request. Default: any.")
    ] = None,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens per batch. Default: measured at the start."),
    ] = None,
    tokenizer_threads: Annotated[
        int, typer.Option(min=1, metavar="N", help="Threads that tokenise long requests.")
    ] = 2,
    cache_bytes: Annotated[
        int, typer.Option(min=0, metavar="N", help="Memory for earlier vectors; 0 for none.")
    ] = 64 * MIB,
    max_waiting_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens that may wait. Default: 30 s of work."),
    ] = None,
    max_waiting_requests: Annotated[
        int, typer.Option(min=1, metavar="N", help="Requests that may wait.")
    ] = 1024,
    max_queue_seconds: Annotated[
        float, typer.Option(min=0.001, metavar="S", help="Deadline of a request.")
    ] = 600,
    payload_limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Bytes of a body, or of a line of a stream.")
    ] = 32 * MIB,
    max_response_bytes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Bytes of an answer.")
    ] = 256 * MIB,
    head_seconds: Annotated[
        float, typer.Option(min=0.001, metavar="S", help="Time to send a request's head.")
    ] = 10,
    body_seconds: Annotated[
        float, typer.Option(min=0.001, metavar="S", help="Time to send a request's body.")
    ] = 60,
    keep_alive_seconds: Annotated[
        int, typer.Option(min=1, metavar="S", help="How long an idle connection stays open.")
    ] = 75,
    drain_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Accept requests for this long after SIGTERM.")
    ] = 5,
    grace_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Then finish those in flight for this long.")
    ] = 25,
    stuck_seconds: Annotated[
        float,
        typer.Option(
            min=0.001,
            metavar="S",
            help="A longer batch makes /health/live answer 503; with --isolate it is given up.",
        ),
    ] = 120,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate", help="Compute in a process per device, which is restarted if it dies."
        ),
    ] = False,
    worker_memory: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Bytes of address space of such a process. Default: any."
        ),
    ] = None,
    log_format: Annotated[
        LogFormatName | None,
        typer.Option(help="Log lines on stderr. Default: text on a terminal, else json."),
    ] = None,
    access_log: Annotated[bool, typer.Option(help="A log line per request.")] = True,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Collector for traces, by OTLP over HTTP. Default: none."),
    ] = None,
    otlp_service_name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of this service in traces.")
    ] = "nomicbert",
    tei_env: Annotated[
        bool,
        typer.Option("--tei-env", help="Also read TEI's variables, such as MODEL_ID and PORT."),
    ] = False,
) -> None:
    """Embed texts over HTTP, in the protocols of OpenAI, TEI, nomic, Cohere and ollama."""
    given: dict[str, Any] = dict(locals())
    del given["context"], given["tei_env"]
    if tei_env:
        given |= from_tei_environment(context, os.environ)
    need_serve()
    if otlp_endpoint is not None:
        need_otel()

    # Slow imports, so they follow the checks of the arguments.
    from nomicbert.serve.server import run
    from nomicbert.serve.settings import PLURALS, ServeSettings

    form = given.pop("log_format")
    text = console.is_terminal(sys.stderr) if form is None else form is LogFormatName.text
    values: dict[str, Any] = {
        PLURALS.get(name, name): _items(name, value) if name in PLURALS else _value(value)
        for name, value in given.items()
    }
    settings = ServeSettings(**values)
    run(settings, "text" if text else "json", console.say)


def need_serve() -> None:
    """Refuse if the libraries of the server are not installed.

    Raises: ImportError: it names the extra.
    """
    for name in (
        "starlette",
        "uvicorn",
        "httptools",
        "msgspec",
        "orjson",
        "pybase64",
        "prometheus_client",
    ):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"the server needs {name}: {to_install('serve')}")


def need_otel() -> None:
    """Refuse traces if the libraries for them are not installed.

    Raises: ImportError: it names the extra.
    """
    name = "opentelemetry.exporter.otlp.proto.http"
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of a package above it
        found = None
    if found is None:
        raise ImportError(f"--otlp-endpoint needs {name}: {to_install('otel')}")


def _value(value: Any) -> Any:
    """The value in ServeSettings."""
    return value.value if isinstance(value, Enum) else value


def _items(option: str, given: list[str] | None) -> tuple[Any, ...]:
    """The values of an option that may be repeated."""
    items = tuple(given or ())
    if option == "model_alias":
        return tuple((alias, name) for alias, _, name in (item.partition("=") for item in items))
    return items
