"""Keywords of sentence-transformers' constructor -> those of this package, and settings to set.

Where in the flow: the first step of `Embedder` and `CrossEncoder`, before a checkpoint is looked
for. What cannot be honoured is refused by name; entries that change no vector have no effect.
Source: the arguments of `SentenceTransformer` in sentence-transformers 2 to 6.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from nomicbert.arguments import as_whole
from nomicbert.loading.card_data import ModelCardData
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.loading.json_settings import Settings
from nomicbert.loading.known_ids import full_id
from nomicbert.loading.pretrained import EmbedderKeywords, ModelKeywords
from nomicbert.loading.sentence_settings import PASSED_ON

# Where sentence-transformers keeps its downloads.
CACHE_VARIABLE = "SENTENCE_TRANSFORMERS_HOME"
ORGANISATION = "sentence-transformers/"
EXPORT = "ONNX and OpenVINO files are made by `nomicbert export`, and run without this package"

# Their name -> ours.
RENAMED = {
    "cache_folder": "cache_dir",
    "model_name_or_path": "path_or_repo_id",
    "use_auth_token": "token",
}
# Dictionaries that they hand on to transformers -> entries that are keywords here.
OURS: dict[str, tuple[str, ...]] = {
    "model_kwargs": ("add_pooling_layer", "attn_implementation", "device_map", "dtype",
                     "low_cpu_mem_usage", "rotary_scaling_factor", "torch_dtype",
                     "trust_remote_code", "use_safetensors", "weights_only"),
    "config_kwargs": ("attention_probs_dropout_prob", "hidden_dropout_prob",
                      "rotary_scaling_factor", "trust_remote_code"),
    "processor_kwargs": ("model_max_length", "truncation_side", "trust_remote_code"),
}  # fmt: skip
# Entries that change no vector: no code is run, and texts are not padded.
NEUTRAL: dict[str, set[str]] = {
    "model_kwargs": {"code_revision"},
    "config_kwargs": {*PASSED_ON["config"], "code_revision"},
    "processor_kwargs": {*PASSED_ON["processor"], "clean_up_tokenization_spaces", "padding_side"},
}
LOCATION = "give it to the constructor itself"
INT8 = "give backend='int8'"
INSTEAD: dict[str, dict[str, str]] = {
    "model_kwargs": {
        **dict.fromkeys(("export", "file_name", "provider", "provider_options"), EXPORT),
        **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_config"), INT8),
        **dict.fromkeys(("cache_dir", "local_files_only", "revision", "token"), LOCATION),
    },
    "config_kwargs": {},
    "processor_kwargs": {},
}
OTHERWISE = {
    "model_kwargs": "it is an argument of transformers' models, which are not used",
    "config_kwargs": "change config.json in the checkpoint's folder",
    "processor_kwargs": "change tokenizer_config.json in the checkpoint's folder",
}


class SharedKeywords(TypedDict, total=False):
    """The keywords that exist for sentence-transformers' sake, in both of its classes.

    Attributes:
        model_name_or_path: `path_or_repo_id`.
        cache_folder: `cache_dir`; without either, the variable SENTENCE_TRANSFORMERS_HOME counts.
        use_auth_token: old name of `token`.
        prompts: put in place of the checkpoint's prompts of the same names, or added to them.
        default_prompt_name: name of the prompt of calls that give none.
        model_card_data: what its author knows of the model, a `ModelCardData`.
        model_kwargs: entries that are keywords here (torch_dtype, device_map, ...).
        config_kwargs: the same; rotary_scaling_factor, hidden_dropout_prob, ...
        processor_kwargs: model_max_length is `max_seq_length`; truncation_side.
        tokenizer_kwargs: old name of `processor_kwargs`.
    """

    model_name_or_path: str | os.PathLike[str] | None
    cache_folder: str | os.PathLike[str] | None
    use_auth_token: str | bool | None
    prompts: Mapping[str, str] | None
    default_prompt_name: str | None
    model_card_data: ModelCardData | None
    model_kwargs: Mapping[str, object] | None
    config_kwargs: Mapping[str, object] | None
    processor_kwargs: Mapping[str, object] | None
    tokenizer_kwargs: Mapping[str, object] | None


class SentenceKeywords(SharedKeywords, total=False):
    """Those of `Embedder`.

    Attributes:
        similarity_fn_name: the function of `similarity`, or its member of an enumeration.
        truncate_dim: columns that `encode` keeps if a call gives no width.
    """

    similarity_fn_name: str | None
    truncate_dim: int | None


class ConstructorKeywords(ModelKeywords, SentenceKeywords, total=False):
    """Those of `Embedder`'s constructor that it does not name itself."""


class FromPretrainedKeywords(EmbedderKeywords, SentenceKeywords, total=False):
    """Those of `Embedder.from_pretrained`."""


NAMES = SentenceKeywords.__annotations__.keys()


@dataclass
class Wanted:
    """What a call of the constructor asks for, in this package's words.

    Attributes:
        location: arguments of `hub.resolve`.
        model: keywords of `NomicBert.from_pretrained`; unknown ones are not refused yet.
        prompts: changes of the checkpoint's prompts.
        settings: attributes of the embedder to set once it is loaded.
        truncation_side: "left" or "right", in place of the checkpoint's; None keeps that.
        tokenizer_limit: model_max_length of the tokenizer; None keeps the checkpoint's limit.
    """

    location: dict[str, Any]
    model: dict[str, Any]
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    truncation_side: str | None = None
    tokenizer_limit: int | None = None

    def truncating(self, checkpoint: CheckpointFolder) -> CheckpointFolder:
        """The checkpoint's settings, with this truncation side."""
        if self.truncation_side is None:
            return checkpoint
        stated = checkpoint.tokenizer.stated
        raw = {**stated.raw, "truncation_side": self.truncation_side}
        tokenizer = replace(checkpoint.tokenizer, stated=Settings(raw, stated.path))
        return replace(checkpoint, tokenizer=tokenizer)


def translate(
    location: Mapping[str, Any], keywords: Mapping[str, Any], organisation: str = ORGANISATION
) -> Wanted:
    """Sort the arguments of a call of the constructor.

    Args:
        location: the arguments of `hub.resolve`, as the call gives them.
        keywords: all others; those of `SentenceKeywords` are translated, the rest is kept.
        organisation: of a known repository that is named without one.

    Raises: TypeError: an argument given under two names, or missing; an entry of a dictionary that
        cannot be honoured. ValueError: its value is invalid. The message names it.
    """
    given = {name: value for name, value in keywords.items() if value is not None}
    rest = {name: value for name, value in keywords.items() if name not in NAMES}
    wanted = Wanted(dict(location), rest)
    for theirs, ours in RENAMED.items():
        if theirs in given:
            _set(wanted.location, ours, given[theirs], f"{ours} and {theirs}")
    if wanted.location["cache_dir"] is None:
        wanted.location["cache_dir"] = os.environ.get(CACHE_VARIABLE) or None
    wanted.location["path_or_repo_id"] = _source(wanted.location["path_or_repo_id"], organisation)
    wanted.prompts = _mapping(given, "prompts")
    wanted.default_prompt_name = given.get("default_prompt_name")
    for name in ("similarity_fn_name", "truncate_dim", "model_card_data"):
        if name in given:
            wanted.settings[name] = given[name]
    if {"tokenizer_kwargs", "processor_kwargs"} <= given.keys():
        raise TypeError("give processor_kwargs or tokenizer_kwargs (its old name), not both")
    for name in ("model_kwargs", "config_kwargs", "processor_kwargs", "tokenizer_kwargs"):
        for entry, value in _mapping(given, name).items():
            _take(wanted, name, entry, value)
    if given.get("device") is not None and "device_map" in given.get("model_kwargs", {}):
        raise TypeError("give device or model_kwargs['device_map'], not both")
    dtypes = (rest.get(name) for name in ("dtype", "torch_dtype"))
    names = {str(one).removeprefix("torch.") for one in dtypes if one is not None}
    if len(names) > 1:
        raise TypeError(f"give dtype or torch_dtype (its old name), not both: {sorted(names)}")
    if rest.get("config") is not None:
        raise ValueError(
            "config is for a model alone, as of NomicBert.from_pretrained, because prompts and "
            "limits follow from the folder's: change config.json there"
        )
    if subfolder := rest.pop("subfolder", ""):
        raise ValueError(
            f"subfolder={subfolder!r:.80} is not supported, because tokenizer and modules are "
            "sought beside the encoder: give the path of that folder"
        )
    wanted.location["use_safetensors"] = rest.get("use_safetensors")
    wanted.location["force_download"] = rest.pop("force_download", False)
    if rest.get("backend") in ("onnx", "openvino"):
        raise ValueError(f"backend {rest['backend']!r} is not one of this package: {EXPORT}")
    return wanted


def _source(name: Any, organisation: str) -> Any:
    """The folder or repository, with the organisation that sentence-transformers implies."""
    if name is None:
        raise TypeError("path_or_repo_id is missing: give a folder or a repository of the hub")
    if not isinstance(name, str) or "/" in name or os.path.isdir(name):
        return name
    full = full_id(name)
    return full if full is not None and full.startswith(organisation) else name


def _take(wanted: Wanted, name: str, entry: str, value: Any) -> None:
    """Put one entry of a dictionary where it belongs."""
    kind = "processor_kwargs" if name == "tokenizer_kwargs" else name
    if entry == "model_max_length":
        wanted.tokenizer_limit = as_whole(f"{name}['model_max_length']", value)
    elif entry == "truncation_side":
        if value not in ("left", "right"):
            raise ValueError(f"{name}[{entry!r}] must be 'left' or 'right', not {value!r}")
        wanted.truncation_side = value
    elif entry in OURS[kind]:
        if value is not None:  # their default
            _set(wanted.model, entry, value, f"{entry} and {name}[{entry!r}]")
    elif entry not in NEUTRAL[kind]:
        use = INSTEAD[kind].get(entry, OTHERWISE[kind])
        raise TypeError(f"{name} has {entry!r}, which is not supported: {use}")


def _set(place: dict[str, Any], name: str, value: Any, both: str) -> None:
    """Set an argument that may also have been given under its own name, to the same value."""
    before = place.get(name)
    if before is not None and before is not value and before != value:
        raise TypeError(f"{both} are given, with different values: give one of them")
    place[name] = value


def _mapping(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = given.get(name, {})
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise TypeError(f"{name} must be a dict with names as its keys, not {found!r:.80}")
    return found
