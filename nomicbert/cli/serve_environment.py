"""TEI's environment variables, for `nomicbert serve --tei-env`.

Source: the flags of huggingface/text-embeddings-inference 1.9, whose variables are the flags in
upper case. HOSTNAME is left out: shells and Docker set it to the machine's name, so the address is
read from HOST.
"""

import math
from collections.abc import Mapping

import typer

from nomicbert.cli.options import DtypeName

# Variable -> option here, and how its text is read.
TEI: dict[str, tuple[str, type]] = {
    "MODEL_ID": ("model", list),
    "REVISION": ("revision", str),
    "TOKENIZATION_WORKERS": ("tokenizer_threads", int),
    "DTYPE": ("dtype", DtypeName),
    "SERVED_MODEL_NAME": ("served_model_name", list),
    "MAX_CONCURRENT_REQUESTS": ("max_waiting_requests", int),
    "MAX_BATCH_TOKENS": ("max_batch_tokens", int),
    "MAX_CLIENT_BATCH_SIZE": ("max_client_batch_size", int),
    "AUTO_TRUNCATE": ("auto_truncate", bool),
    "DEFAULT_PROMPT_NAME": ("default_prompt_name", str),
    "DEFAULT_PROMPT": ("default_prompt", str),
    "HOST": ("host", str),
    "PORT": ("port", int),
    "UDS_PATH": ("uds", str),
    "PAYLOAD_LIMIT": ("payload_limit", int),
    "API_KEY": ("api_key", list),
    "CORS_ALLOW_ORIGIN": ("cors_origin", list),
}
MOST_PORT = 65535
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


def from_tei_environment(
    context: typer.Context, environment: Mapping[str, str]
) -> dict[str, object]:
    """The options that TEI's variables set and the command line does not.

    Raises: ValueError: a variable whose text is no such value.
    """
    found: dict[str, object] = {}
    for variable, (option, kind) in TEI.items():
        text = environment.get(variable, "")
        if text and _is_default(context, option):
            found[option] = _read(variable, text, kind)
    return found


def _is_default(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "DEFAULT"


def _read(variable: str, text: str, kind: type) -> object:
    """The value of a variable, with the limits of its option."""
    if kind is list:
        return text.split(",") if variable == "CORS_ALLOW_ORIGIN" else [text]
    if kind is bool:
        if text.lower() not in (*TRUE, *FALSE):
            raise ValueError(f"{variable} must be true or false, not {text!r}")
        return text.lower() in TRUE
    if kind is int:
        least, most = (0, MOST_PORT) if variable == "PORT" else (1, math.inf)
        if not (text.isdecimal() and least <= int(text) <= most):
            limits = f"{least} to {most}" if variable == "PORT" else f"at least {least}"
            raise ValueError(f"{variable} must be a whole number, {limits}, not {text!r}")
        return int(text)
    if kind is DtypeName and text not in [one.value for one in DtypeName]:
        known = ", ".join(one.value for one in DtypeName)
        raise ValueError(f"{variable} must be one of {known}, not {text!r}")
    return text
