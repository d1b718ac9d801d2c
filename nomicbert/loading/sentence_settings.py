"""The two settings files of sentence-transformers: the keys that are honoured; others are refused.

Where in the flow: `folder` builds its records from what these functions return. A key that can
change a vector or a score is honoured there or refused here. One that neither library knows gives
a warning in the first file, which other tools write to, and is refused in the second.
Source: what sentence-transformers 6 reads: `_parse_model_config` of SentenceTransformer and
CrossEncoder, and the arguments of its Transformer module.
"""

from pathlib import Path
from typing import Any

from nomicbert.errors import ConfigError
from nomicbert.loading.json_settings import Settings, optional
from nomicbert.user_warnings import ConfigWarning, warn

MODEL_FILE = "config_sentence_transformers.json"
MODEL_KEYS = {
    "activation_fn",
    "default_prompt_name",
    "model_type",
    "prompts",
    "similarity_fn_name",
    "truncate_dim",
}
# Versions of other libraries: they change nothing here.
MODEL_KEYS |= {"__version__", "requirements"}
MODEL_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "keep_in_fp32_modules": ([],),
    "max_active_dims": (),
}

# In the order in which sentence-transformers looks for them; the first that is not empty counts.
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# unpad_inputs decides on padding, which no result here depends on
TRANSFORMER_KEYS = {"do_lower_case", "max_seq_length", "transformer_task", "unpad_inputs"}
TRANSFORMER_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "document_length": (),
    "processing_kwargs": ({},),
    "query_expansion": (),
    "query_length": (),
    "tokenizer_name_or_path": (),
}
# Arguments for transformers, under their old and new names, and entries that change nothing.
FLOAT32 = ("auto", "float32", "torch.float32")
PASSED_ON: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "model": {
        "add_pooling_layer": None,
        "attn_implementation": None,
        "dtype": FLOAT32,
        "low_cpu_mem_usage": None,
        "torch_dtype": FLOAT32,
        "trust_remote_code": None,
        "use_safetensors": None,
    },
    "config": {"trust_remote_code": None, "use_cache": None},
    "processor": {"trust_remote_code": None, "use_fast": None},
    "tokenizer": {"trust_remote_code": None, "use_fast": None},
}
# Task -> the output of the model that the module takes, and the module's name for it.
TASKS = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
}


def read_model_settings(folder: Path) -> Settings:
    """Read config_sentence_transformers.json; empty if the file does not exist.

    Raises: ConfigError: damaged, or a key that is not supported; the error names it.
    Warns: ConfigWarning: a key that is not known.
    """
    found = optional(folder / MODEL_FILE)
    found.refuse(MODEL_NEUTRAL)
    if unknown := _unknown(found, MODEL_KEYS | MODEL_NEUTRAL.keys()):
        warn(f"{found.path} has settings that are not known: {unknown}", ConfigWarning)
    return found


def read_transformer_settings(folder: Path) -> Settings:
    """Read sentence_bert_config.json, or the file of that kind under an older name.

    Raises: ConfigError: as `read_model_settings`.
    """
    for name in TRANSFORMER_FILES:
        found = optional(folder / name)
        if found.raw:
            break
    found.refuse(TRANSFORMER_NEUTRAL)
    known = TRANSFORMER_KEYS | TRANSFORMER_NEUTRAL.keys()
    for kind, allowed in PASSED_ON.items():
        for key in (f"{kind}_args", f"{kind}_kwargs"):
            _check_passed_on(found, key, allowed)
            known = known | {key}
    _check_task(found)
    if unknown := _unknown(found, known | {"modality_config", "module_output_name"}):
        raise ConfigError(
            f"{found.path} has settings that are not supported: {unknown}. Remove them if the "
            "model does not depend on them"
        )
    return found


def _unknown(found: Settings, known: set[str]) -> str:
    return ", ".join(sorted(key for key in found.raw.keys() - known if found.raw[key] is not None))


def _check_passed_on(found: Settings, key: str, allowed: dict[str, tuple[Any, ...] | None]) -> None:
    stated = found.raw.get(key)
    if not isinstance(stated, dict | None):
        raise ConfigError(f"{found.path}: {key} must be an object, not {stated!r}")
    for name, value in (stated or {}).items():
        values = allowed.get(name, ())
        if value is None or values is None or value in values:
            continue
        if "dtype" in name:
            warn(
                f"{found.path}: {key} has {name} = {value!r}, which sentence-transformers loads "
                "in; here the dtype is that of the call, by default float32",
                ConfigWarning,
            )
            continue
        raise ConfigError(f"{found.path}: {key} has {name} = {value!r}, which is not supported")


def _check_task(found: Settings) -> None:
    task = found.raw.get("transformer_task") or "feature-extraction"
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError(
            f"{found.path}: transformer_task = {task!r} is not supported; supported are "
            + ", ".join(TASKS)
        )
    output, name = TASKS[task]
    text = {"text": {"method": "forward", "method_output_name": output}}
    found.refuse({"modality_config": (text,), "module_output_name": (name,)})
