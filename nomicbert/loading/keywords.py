"""Keywords of transformers' `from_pretrained`: those that change nothing here, and refusals.

Existing call sites pass them. Each one has one meaning, or is refused by its name with advice.
Source: PreTrainedModel.from_pretrained of transformers 5, and the older names that it dropped.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypedDict

from nomicbert.arguments import INSTEAD, refuse_unknown


class OffKeywords(TypedDict, total=False):
    """Keywords that are accepted with the value that switches them off, and refused otherwise."""

    variant: None
    proxies: None
    output_loading_info: Literal[False] | None
    from_tf: Literal[False] | None
    from_flax: Literal[False] | None
    mirror: None
    quantization_config: None
    key_mapping: None
    _fast_init: bool | None
    resume_download: bool | None


class EncoderOffKeywords(OffKeywords, total=False):
    """The same of an encoder, which no new parameters can replace."""

    ignore_mismatched_sizes: Literal[False] | None


# The same at run time: the values that are accepted, and what to do in place of another one.
OFF: dict[str, tuple[tuple[Any, ...], str]] = {
    "variant": (
        (None, ""),
        "files of a variant are not read: give the revision or folder whose model.safetensors it "
        "is, and dtype",
    ),
    "proxies": ((None,), "set the environment variable HTTPS_PROXY"),
    "output_loading_info": (
        (None, False),
        "loading is strict: a tensor that is missing, left over or of another shape is an error "
        "that names it",
    ),
    "from_tf": ((None, False), "convert the checkpoint to safetensors with transformers 4"),
    "from_flax": ((None, False), "convert the checkpoint to safetensors with transformers 4"),
    "mirror": ((None,), "set the environment variable HF_ENDPOINT"),
    "quantization_config": (
        (None,),
        "give backend='int8' or backend='fp8', which quantise the linear layers",
    ),
    "key_mapping": ((None,), "rename the tensors, and give them as state_dict"),
    # how transformers 4 initialised, and how huggingface_hub resumed: nothing depends on them
    "_fast_init": ((None, True, False), ""),
    "resume_download": ((None, True, False), ""),
    "ignore_mismatched_sizes": (
        (None, False),
        "an encoder is never replaced by a random one; for a head give num_labels",
    ),
}


class SaveKeywords(TypedDict, total=False):
    """Keywords of transformers' `save_pretrained` that do not decide what is written."""

    safe_serialization: Literal[True]
    push_to_hub: Literal[False]
    max_shard_size: int | str
    variant: None


# Further keywords -> what to do.
ADVICE = {
    **INSTEAD,
    **dict.fromkeys(
        ("id2label", "label2id", "num_labels", "problem_type", "classifier_dropout"),
        "only a class with such a head has labels, as NomicBertForSequenceClassification",
    ),
    **dict.fromkeys(("load_in_8bit", "load_in_4bit"), "give backend='int8' or backend='fp8'"),
    **dict.fromkeys(
        ("max_memory", "offload_folder", "offload_state_dict", "offload_buffers"),
        "load the model, then call accelerate's dispatch_model or cpu_offload",
    ),
    **dict.fromkeys(("tp_plan", "tp_size", "device_mesh"), "give one device"),
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "return_dict"), "give it to the call"
    ),
    **dict.fromkeys(("gguf_file", "adapter_kwargs"), "only safetensors and .bin files are read"),
    "use_cache": "an encoder has no cache of keys and values: leave it out",
    "use_auth_token": "give token",
}

# Names of transformers for what computes attention. Here the backend does, always the same values.
ATTENTION = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
)


def refuse_others(
    keywords: Mapping[str, object], *functions: Callable[..., Any], more: Collection[str] = ()
) -> None:
    """Accept what is switched off, refuse all other keywords.

    Args:
        keywords: those that the first function has no parameter for.
        *functions: with the known keywords; the first one was called.
        more: other known keywords.

    Raises: TypeError: unknown keyword. ValueError: a keyword of `OFF` with another value.
    """
    for name, value in keywords.items():
        if name not in OFF:
            refuse_unknown([name], *functions, more=more, instead=ADVICE)
        accepted, advice = OFF[name]
        if not any(value is one or (one == "" and value == "") for one in accepted):
            raise ValueError(f"{name}={value!r:.80} is not supported: {advice}")


def check_accepted(
    attn_implementation: object, low_cpu_mem_usage: object, weights_only: object
) -> None:
    """Check keywords that are accepted for existing call sites and change nothing.

    Raises: TypeError, ValueError: a value that would ask for something else.
    """
    if attn_implementation is not None and attn_implementation not in ATTENTION:
        raise ValueError(
            f"attn_implementation must be one of {', '.join(map(repr, ATTENTION))} or None, not "
            f"{attn_implementation!r:.80}; the backend computes attention, whichever it names"
        )
    for name, value in (("low_cpu_mem_usage", low_cpu_mem_usage), ("weights_only", weights_only)):
        if not isinstance(value, bool | None):
            raise TypeError(f"{name} must be True, False or None, not {value!r:.80}")
    if weights_only is False:
        raise ValueError("weights_only=False is not supported: only plain tensors are unpickled")


def check_saving(keywords: Mapping[str, object], size: int, called: Callable[..., Any]) -> None:
    """Check the keywords of `save_pretrained` that do not decide what is written.

    Args:
        keywords: those of `SaveKeywords`.
        size: bytes of the parameters.
        called: named in the error message.

    Raises: TypeError: unknown keyword. ValueError: a value that would ask for something else.
    """
    for name, value in keywords.items():
        if name == "safe_serialization" and value is not True:
            raise ValueError(f"{name}={value!r:.80} is not supported: safetensors are written")
        if name == "push_to_hub" and value is not False:
            raise ValueError(f"{name}={value!r:.80} is not supported: save, then upload the folder")
        if name == "variant" and value not in (None, ""):
            raise ValueError(f"{name}={value!r:.80} is not supported: give a folder of its own")
        if name == "max_shard_size" and _bytes(value) < size:
            raise ValueError(
                f"max_shard_size={value!r:.80} is not supported: the model has {size:,} bytes, and "
                "one file is written"
            )
        if name not in SaveKeywords.__annotations__:
            refuse_unknown([name], called, more=SaveKeywords.__annotations__, instead={})


def _bytes(size: object) -> int:
    """A size as transformers has it: a number of bytes, or "5GB", "200MB", "1GiB"."""
    found = re.fullmatch(r"(\d+) ?([KMGT]?)(i?)B?", str(size), re.IGNORECASE)
    if found is None or isinstance(size, bool):
        raise ValueError(f"max_shard_size must be a size as '5GB', not {size!r:.80}")
    number, unit, binary = found.groups()
    power = " KMGT".index(unit.upper() or " ")
    return int(number) * int((1024 if binary else 1000) ** power)
