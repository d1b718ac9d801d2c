"""Attributes that the facades do not have: refused by name when set, with the equivalent when read.

Where in the flow: the base class of `settings`. Names of sentence-transformers, names of torch
modules and keywords of calls would otherwise be set and have no effect. Other names are a caller's
own and may be set; a subclass may define any name in its class body.
"""

import difflib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch import nn

from nomicbert.runtime.encode_keywords import CallKeywords
from nomicbert.runtime.predict_types import AllPredictKeywords

# Names of sentence-transformers -> what to use; {} is the facade, {model} its module.
EQUIVALENTS = {
    "auto_model": "{}.model",
    "backend": "{}.model.backend, and {}.model.use(backend) to change it",
    "fit": "a loop of your own over {model}, which keeps gradients",
    "get_backend": "{}.model.backend",
    "get_default_activation_fn": "{}.activation_fn",
    "get_sentence_features": "{}.batch(texts)",
    "load": "from_pretrained",
    "max_length": "{}.max_seq_length, or max_length in a call of encode",
    "gradient_checkpointing_enable": "{}.model.gradient_checkpointing_enable()",
    "set_keep_in_fp32_modules": "dtype=torch.float32 when loading",
    "set_pooling_include_prompt": "{model}.pooling.include_prompt; a classifier has no pooling",
    "transformers_model": "{}.model",
}
# Names of sentence-transformers without an equivalent.
WITHOUT = {
    "active_adapter",
    "active_adapters",
    "add_adapter",
    "check_peft_compatible_model",
    "clear_placement_cache",
    "default_huggingface_organization",
    "delete_adapter",
    "disable_adapters",
    "enable_adapters",
    "get_adapter_state_dict",
    "has_peft_compatible_model",
    "is_hpu_graph_enabled",
    "keep_in_fp32_modules",
    "load_adapter",
    "merge",
    "model_card_data_class",
    "model_type",
    "module_kwargs",
    "old_fit",
    "set_adapter",
    "smart_batching_collate",
    "smart_batching_collate_text_only",
    "trust_remote_code",
}
READ_ONLY = {
    "device": "device in a call moves the model, and so does {model}.to(device)",
    "model": "replace {model}.encoder",
    "pooling": "replace {model}.pooling",
    "num_labels": "num_labels when loading gives a checkpoint another head",
}
# Settings whose misspelling is refused.
SETTINGS = (
    "activation_fn",
    "default_prompt_name",
    "max_seq_length",
    "prompts",
    "similarity_fn_name",
    "tokenizer",
    "truncate_dim",
)
# Class -> its call, the keywords of it, and attributes that the other class does not have.
Own = tuple[str, Collection[str], Collection[str]]
EMBEDDER: Own = (
    "encode",
    CallKeywords.__annotations__,
    (
        "SUPPORTED_SIMILARITY_FN_NAMES",
        "embedding_model",
        "encode_multi_process",
        "graphs",
        "pooling",
        "similarity_fn_name",
        "truncate_dim",
        "truncate_embeddings",
        "truncate_sentence_embeddings",
    ),
)
CROSS_ENCODER: Own = (
    "predict",
    AllPredictKeywords.__annotations__,
    ("activation_fn", "default_activation_function", "num_labels"),
)


class KnownNames:
    """Refuses to set an attribute that would have no effect, and says what to use instead."""

    # "embedder" or "reranker", as messages call it
    _facade: str

    # hidden from type checkers: they report an attribute that a class does not declare
    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and name not in vars(self):
                _refuse_to_set(type(self), name)
            object.__setattr__(self, name, value)

        def __getattr__(self, name: str) -> Any:
            kind = type(self)
            if hasattr(kind, name):  # a property that failed: its own error
                return object.__getattribute__(self, name)
            use = _instead(kind, name)
            hint = "" if name.startswith("_") or use is None else f": {use}"
            message = f"{kind.__name__!r} object has no attribute {name!r}{hint}"
            raise AttributeError(message, name=name, obj=self)


def _refuse_to_set(kind: type[KnownNames], name: str) -> None:
    declared = getattr(kind, name, None)
    if isinstance(declared, property) and declared.fset is None:
        why = _named(READ_ONLY.get(name, "it follows from the checkpoint"), kind)
        raise AttributeError(f"{kind.__name__}.{name} cannot be set: {why}")
    if hasattr(kind, name):
        return
    use = _instead(kind, name)
    if use is None:
        settings = [setting for setting in SETTINGS if hasattr(kind, setting)]
        near = difflib.get_close_matches(name, settings, n=1, cutoff=0.8)
        use = f"did you mean {near[0]!r}?" if near else None
    if use is not None:
        raise AttributeError(f"{kind.__name__} has no attribute {name!r}: {use}")


def _instead(kind: type[KnownNames], name: str) -> str | None:
    """What to use in place of a known name; None if the name is not known."""
    if name in EQUIVALENTS:
        return _named(f"use {EQUIVALENTS[name]}", kind)
    if name in WITHOUT:
        return "sentence-transformers has it, nomicbert has not"
    own, other = (CROSS_ENCODER, EMBEDDER) if _scores(kind) else (EMBEDDER, CROSS_ENCODER)
    if name in own[1]:
        return f"it is a keyword of a call, as in {own[0]}(..., {name}=...)"
    if (name in other[1] or name in other[2]) and name not in own[2]:
        return f"only {'Embedder' if _scores(kind) else 'CrossEncoder'} has it"
    if hasattr(nn.Sequential, name):
        return _named("it belongs to the module, {model}", kind)
    return None


def _scores(kind: type[KnownNames]) -> bool:
    return kind._facade == "reranker"


def _named(text: str, kind: type[KnownNames]) -> str:
    facade, module = ("reranker", "model") if _scores(kind) else ("embedder", "embedding_model")
    return text.replace("{model}", f"{facade}.{module}").replace("{}", facade)
