"""`nomicbert serve`: its options, their variables, TEI's variables, and mistakes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from nomicbert.cli import serve as command
from nomicbert.cli.serve_environment import TEI
from nomicbert.errors import to_install
from nomicbert.serve import server
from nomicbert.serve.settings import MIB, ServeSettings
from tests.support.command_line import one_line, run_cli

Call = Callable[..., tuple[ServeSettings, str]]


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Settings and log format of a command line; nothing is served."""
    for name in (*TEI, "HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    found: list[tuple[ServeSettings, str]] = []

    def run(settings: ServeSettings, log_format: str, say: object) -> None:
        found.append((settings, log_format))

    monkeypatch.setattr(server, "run", run)

    def call(*flags: str) -> tuple[ServeSettings, str]:
        code, out, err = run_cli("serve", *flags)
        assert (code, out, err) == (0, "", "")
        return found.pop()

    return call


def test_defaults(settings_of: Call) -> None:
    settings, log_format = settings_of("-m", "model")
    assert settings == ServeSettings(models=("model",))
    assert log_format == "json"  # stderr is no terminal here
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)


# option -> its words, the field of ServeSettings, and the value there
OPTIONS: dict[str, tuple[list[str], str, Any]] = {
    "--served-model-name": (["a", "b"], "served_model_names", ("a", "b")),
    "--model-alias": (["a=model", "b=c=d"], "model_aliases", (("a", "model"), ("b", "c=d"))),
    "--any-model-name": ([], "any_model_name", True),
    "--revision": (["main"], "revision", "main"),
    "--local-files-only": ([], "local_files_only", True),
    "--dtype": (["bfloat16"], "dtype", "bfloat16"),
    "--device": (["cpu", "cuda:1"], "devices", ("cpu", "cuda:1")),
    "--backend": (["torch"], "backend", "torch"),
    "--rotary-scaling-factor": (["2"], "rotary_scaling_factor", 2.0),
    "--threads": (["3"], "threads", 3),
    "--host": (["::1"], "host", "::1"),
    "--port": (["0"], "port", 0),
    "--uds": (["/tmp/socket"], "uds", "/tmp/socket"),
    "--cors-origin": (["https://a", "https://b"], "cors_origins", ("https://a", "https://b")),
    "--api-key": (["nk-1", "nk-2"], "api_keys", ("nk-1", "nk-2")),
    "--open-metrics": ([], "open_metrics", True),
    "--default-prompt-name": (["search_query"], "default_prompt_name", "search_query"),
    "--default-prompt": (["query: "], "default_prompt", "query: "),
    "--max-length": (["512"], "max_length", 512),
    "--on-long": (["mean"], "on_long", "mean"),
    "--no-auto-truncate": ([], "auto_truncate", False),
    "--max-client-batch-size": (["32"], "max_client_batch_size", 32),
    "--max-batch-tokens": (["512"], "max_batch_tokens", 512),
    "--tokenizer-threads": (["4"], "tokenizer_threads", 4),
    "--cache-bytes": (["0"], "cache_bytes", 0),
    "--max-waiting-tokens": (["1000"], "max_waiting_tokens", 1000),
    "--max-waiting-requests": (["9"], "max_waiting_requests", 9),
    "--max-queue-seconds": (["1.5"], "max_queue_seconds", 1.5),
    "--payload-limit": (["2000000"], "payload_limit", 2_000_000),
    "--max-response-bytes": ([str(MIB)], "max_response_bytes", MIB),
    "--head-seconds": (["0.5"], "head_seconds", 0.5),
    "--body-seconds": (["2"], "body_seconds", 2.0),
    "--keep-alive-seconds": (["7"], "keep_alive_seconds", 7),
    "--drain-seconds": (["0"], "drain_seconds", 0.0),
    "--grace-seconds": (["3"], "grace_seconds", 3.0),
    "--stuck-seconds": (["4"], "stuck_seconds", 4.0),
    "--isolate": ([], "isolate", True),
    "--no-access-log": ([], "access_log", False),
    "--otlp-endpoint": (["http://collector:4318"], "otlp_endpoint", "http://collector:4318"),
    "--otlp-service-name": (["vectors"], "otlp_service_name", "vectors"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options(settings_of: Call, option: str) -> None:
    words, field, value = OPTIONS[option]
    flags = [part for word in words for part in (option, word)] or [option]
    settings, _ = settings_of("-m", "model", *flags)
    assert settings == dataclasses.replace(ServeSettings(models=("model",)), **{field: value})


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_has_a_variable(
    settings_of: Call, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, field, value = OPTIONS[option]
    name = option.removeprefix("--")
    text = " ".join(words) or "1"
    if name.startswith("no-"):
        name, text = name.removeprefix("no-"), "0"
    if option == "--default-prompt":  # lists are split at spaces, texts are not
        text = "query: "
    monkeypatch.setenv("NOMICBERT_MODEL", "model")
    monkeypatch.setenv(f"NOMICBERT_{name.replace('-', '_').upper()}", text)
    settings, _ = settings_of()
    assert settings == dataclasses.replace(ServeSettings(models=("model",)), **{field: value})
    # the command line has the last word
    settings, _ = settings_of("-m", "other")
    assert settings.models == ("other",)


def test_every_option_is_tested() -> None:
    options = {
        "--" + name.replace("_", "-") for name in inspect.signature(command.serve).parameters
    }
    tested = {option.replace("--no-", "--") for option in OPTIONS}
    others = {"--context", "--model", "--tls-cert", "--tls-key", "--log-format", "--tei-env"}
    others |= {"--worker-memory"}  # with --isolate only
    assert options == tested | others


def test_the_memory_of_workers(settings_of: Call) -> None:
    settings, _ = settings_of("-m", "a", "--isolate", "--worker-memory", "8000000000")
    assert (settings.isolate, settings.worker_memory) == (True, 8_000_000_000)


def test_several_models_and_tls(settings_of: Call) -> None:
    settings, _ = settings_of("-m", "a", "-m", "b", "--tls-cert", "c", "--tls-key", "k")
    assert settings.models == ("a", "b")
    assert (settings.tls_cert, settings.tls_key) == ("c", "k")


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_form_of_the_log(settings_of: Call, form: str) -> None:
    assert settings_of("-m", "model", "--log-format", form)[1] == form


# --- TEI ---

TEI_VALUES: dict[str, tuple[str, str, Any]] = {
    "MODEL_ID": ("tei", "models", ("tei",)),
    "REVISION": ("v1", "revision", "v1"),
    "TOKENIZATION_WORKERS": ("3", "tokenizer_threads", 3),
    "DTYPE": ("float16", "dtype", "float16"),
    "SERVED_MODEL_NAME": ("name", "served_model_names", ("name",)),
    "MAX_CONCURRENT_REQUESTS": ("512", "max_waiting_requests", 512),
    "MAX_BATCH_TOKENS": ("16384", "max_batch_tokens", 16384),
    "MAX_CLIENT_BATCH_SIZE": ("32", "max_client_batch_size", 32),
    "AUTO_TRUNCATE": ("false", "auto_truncate", False),
    "DEFAULT_PROMPT_NAME": ("query", "default_prompt_name", "query"),
    "DEFAULT_PROMPT": ("query: ", "default_prompt", "query: "),
    "HOST": ("0.0.0.0", "host", "0.0.0.0"),
    "PORT": ("3000", "port", 3000),
    "UDS_PATH": ("/tmp/tei", "uds", "/tmp/tei"),
    "PAYLOAD_LIMIT": ("2000000", "payload_limit", 2_000_000),
    "API_KEY": ("key", "api_keys", ("key",)),
    "CORS_ALLOW_ORIGIN": ("https://a,https://b", "cors_origins", ("https://a", "https://b")),
}


def test_all_of_teis_variables_are_tested() -> None:
    assert TEI_VALUES.keys() == TEI.keys()


@pytest.mark.parametrize("variable", TEI_VALUES)
def test_teis_variables(settings_of: Call, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, field, value = TEI_VALUES[variable]
    monkeypatch.setenv(variable, text)
    plain = ServeSettings(models=("model",))
    model = [] if variable == "MODEL_ID" else ["-m", "model"]
    assert settings_of("--tei-env", *model)[0] == dataclasses.replace(plain, **{field: value})
    assert settings_of("-m", "model")[0] == plain  # without the flag they are ignored


def test_the_command_line_goes_before_teis_variables(
    settings_of: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_ID", "tei")
    monkeypatch.setenv("PORT", "3000")
    monkeypatch.setenv("HOSTNAME", "a-container")  # the machine's name, not an address
    monkeypatch.setenv("DTYPE", "")
    settings, _ = settings_of("--tei-env", "-m", "mine", "--port", "8080")
    assert settings == ServeSettings(models=("mine",))
    monkeypatch.setenv("NOMICBERT_PORT", "9000")
    assert settings_of("--tei-env")[0] == ServeSettings(models=("tei",), port=9000)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("PORT", "x"), ("PORT", "-1"), ("PORT", "70000"), ("AUTO_TRUNCATE", "maybe"),
     ("MAX_BATCH_TOKENS", "0"), ("TOKENIZATION_WORKERS", "0"), ("DTYPE", "int4")],
)  # fmt: skip
def test_wrong_values_of_teis_variables(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setattr(server, "run", lambda *_: pytest.fail("it must not start"))
    monkeypatch.setenv(variable, text)
    code, out, err = run_cli("serve", "--tei-env", "-m", "model")
    assert (code, out) == (2, "")
    assert variable in one_line(err)
    assert text in err


# --- mistakes ---


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--model"), (["-m", "a", "-m", "a"], "twice"),
        (["-m", "a", "--tls-cert", "c"], "--tls-key"), (["-m", "a", "--api-key", ""], "--api-key"),
        (["-m", "a", "--api-key", "ü"], "--api-key"),
        (["-m", "a", "--default-prompt", "x", "--default-prompt-name", "y"], "not both"),
        (["-m", "a", "--model-alias", "=a"], "ALIAS=NAME"),
        (["-m", "a", "--model-alias", "a"], "ALIAS=NAME"),
        (["-m", "a", "--model-alias", "x=unknown"], "unknown"),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work(flags: list[str], says: str) -> None:
    code, out, err = run_cli("serve", *flags)
    assert (code, out) == (2, "")
    assert says in one_line(err)


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"], ["--port", "x"], ["--max-length", "0"], ["--on-long", "cut"],
        ["--head-seconds", "0"], ["--log-format", "xml"], ["--unknown"], ["--cache-bytes", "-1"],
    ],
)  # fmt: skip
def test_wrong_options(flags: list[str]) -> None:
    code, out, err = run_cli("serve", "-m", "model", *flags)
    assert (code, out) == (2, "")
    assert flags[0] in err
    assert "Traceback" not in err


def test_help() -> None:
    code, out, err = run_cli("serve", "--help")
    assert (code, err) == (0, "")
    for option in OPTIONS:
        assert option.replace("--no-auto", "--auto") in out


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "msgspec" else own(name, *more),
    )
    code, _, err = run_cli("serve", "-m", "model")
    assert code == 2
    assert to_install("serve") in one_line(err)


@pytest.mark.parametrize("above", [False, True], ids=["the module", "a package above it"])
def test_traces_need_their_libraries(monkeypatch: pytest.MonkeyPatch, above: bool) -> None:
    own = command.importlib.util.find_spec

    def find_spec(name: str, *more: Any) -> Any:
        if not name.startswith("opentelemetry."):
            return own(name, *more)
        if above:
            raise ModuleNotFoundError(name)
        return None

    monkeypatch.setattr(command.importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(server, "run", lambda *_: pytest.fail("it must not start"))
    code, _, err = run_cli("serve", "-m", "model", "--otlp-endpoint", "http://collector:4318")
    assert code == 2
    assert to_install("otel") in one_line(err)
