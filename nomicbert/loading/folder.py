"""Read the settings files of a checkpoint folder, each once, into plain records.

Where in the flow: `hub` finds the folder; `text`, `modeling` and `vectors` build tokenizer, encoder
and pooling from these records. No tensor is read here.

Source: the files that sentence-transformers 2 to 6 and transformers write. The length limit is
that of sentence-transformers: its own file's, else the smaller one of tokenizer_config.json (where
1e30 means none) and config.json.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomicbert.config import EncoderConfig
from nomicbert.errors import ConfigError
from nomicbert.loading.hub_config import read_config
from nomicbert.loading.json_settings import Settings, inside, optional, present, read_json_list
from nomicbert.loading.sentence_settings import read_model_settings, read_transformer_settings

# Keys of config.json for a reranker's output activation.
ACTIVATION_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")
# Homes of the modules that modules.json may name.
KNOWN_MODULES = ("sentence_transformers.", "nomicbert.integrations.sentence_transformers.")
# Of both model types in transformers.
DEFAULT_CLASS = "BertTokenizer"


@dataclass(frozen=True)
class Module:
    """One entry of modules.json.

    Attributes:
        kind: the last part of its class name, such as "Pooling".
        folder: of its settings.
    """

    kind: str
    folder: Path


@dataclass(frozen=True)
class Limit:
    """The maximum length of a text.

    Attributes:
        tokens: the maximum, special tokens included.
        source: the file that states it, or "learned positions" if the position table is shorter.
    """

    tokens: int
    source: str


@dataclass(frozen=True)
class StatedPrompts:
    """The prompts of a checkpoint, unvalidated: `text.prompts` checks them.

    Attributes:
        path: of the file.
        by_name: name -> text put before the input; None for none.
        default: the name used when a call gives none, or None.
    """

    path: Path
    by_name: Any
    default: Any


@dataclass(frozen=True)
class TokenizerSettings:
    """The tokenizer settings outside of tokenizer.json.

    Attributes:
        folder: of tokenizer.json or vocab.txt.
        class_name: of the tokenizer in transformers, which decides how the files are read.
        stated: tokenizer_config.json.
        lower_case: lower-case every text first.
    """

    folder: Path
    class_name: str
    stated: Settings
    lower_case: bool


@dataclass(frozen=True)
class CheckpointFolder:
    """The settings of a checkpoint, from which its modules are built.

    Attributes:
        folder: of the checkpoint.
        encoder: the Transformer module's folder: config.json, weights and tokenizer.
        modules: of modules.json in their order; None without that file. sentence-transformers
            then treats the checkpoint as a bare encoder with mean pooling.
        config: of the encoder.
        limit: of a text.
        tokenizer: its settings.
        prompts: of the checkpoint.
        similarity: name of the similarity function that the checkpoint states, unvalidated.
        truncate_dim: columns that `encode` keeps by default, or None for all.
        activation: name of a reranker's output activation as the checkpoint writes it, or None.
        model_type: sentence-transformers' class as the checkpoint states it, or None.
        task: of the Transformer module, as it states it, or None.
        architectures: the classes of transformers that config.json names.
    """

    folder: Path
    encoder: Path
    modules: tuple[Module, ...] | None
    config: EncoderConfig
    limit: Limit
    tokenizer: TokenizerSettings
    prompts: StatedPrompts
    similarity: Any
    truncate_dim: int | None
    activation: Any
    model_type: str | None
    task: str | None
    architectures: tuple[str, ...]


def read_folder(folder: Path, rotary_scaling_factor: float | None = None) -> CheckpointFolder:
    """Read the settings files of a checkpoint.

    Args:
        folder: of the checkpoint.
        rotary_scaling_factor: as for `read_config`.

    Raises: ConfigError: a file is missing, damaged, contradictory, or asks for something
        unsupported.
    """
    modules = read_modules(folder)
    encoder = encoder_of(folder, modules)
    config = read_config(encoder, rotary_scaling_factor)
    served = read_transformer_settings(encoder)
    tokenizer = optional(encoder / "tokenizer_config.json")
    whole = read_model_settings(folder)
    return CheckpointFolder(
        folder=folder,
        encoder=encoder,
        modules=modules,
        config=config,
        limit=_limit(served, tokenizer, config),
        tokenizer=TokenizerSettings(
            encoder,
            _class_name(tokenizer, config),
            tokenizer,
            served.flag("do_lower_case", default=False),
        ),
        prompts=StatedPrompts(
            whole.path, whole.raw.get("prompts"), whole.raw.get("default_prompt_name")
        ),
        similarity=whole.raw.get("similarity_fn_name"),
        truncate_dim=None if whole.raw.get("truncate_dim") is None else whole.size("truncate_dim"),
        activation=_activation(whole, config),
        model_type=_name(whole, "model_type"),
        task=_name(served, "transformer_task"),
        architectures=_architectures(config, encoder / "config.json"),
    )


def find_encoder(folder: Path, custom: bool = False) -> Path:
    """The folder of a checkpoint's Transformer module; raises as `read_modules` does."""
    return encoder_of(folder, read_modules(folder, custom))


def read_modules(folder: Path, custom: bool = False) -> tuple[Module, ...] | None:
    """The entries of modules.json, or None without that file.

    Args:
        folder: of the checkpoint.
        custom: also list modules of custom code, which nothing here can run.

    Raises: ConfigError: the file is damaged, or names custom code or a path outside of the folder.
    """
    path = folder / "modules.json"
    if not present(path):
        return None
    found = []
    for entry in read_json_list(path):
        kind = str(Settings(entry, path).get("type"))
        if not (custom or kind.startswith(KNOWN_MODULES)):
            raise ConfigError(
                f"{path} asks for {kind}, which is custom code: only modules of "
                "sentence_transformers are supported"
            )
        place = inside(folder, entry.get("path", ""), path)
        found.append(Module(kind.rpartition(".")[2], place))
    return tuple(found)


def encoder_of(folder: Path, modules: tuple[Module, ...] | None) -> Path:
    """The folder of the Transformer module among these; the checkpoint's own without one."""
    return next((one.folder for one in modules or () if one.kind == "Transformer"), folder)


def _limit(served: Settings, tokenizer: Settings, config: EncoderConfig) -> Limit:
    stated = served.size("max_seq_length", default=0)
    key = "max_len" if tokenizer.raw.get("model_max_length") is None else "model_max_length"
    trained = tokenizer.number(key, default=math.inf)
    native = config.source.get("max_position_embeddings")
    positions = config.max_position_embeddings if native is None else int(native)
    if stated:
        found = Limit(stated, served.path.name)
    elif trained <= positions:
        found = Limit(int(max(trained, 0)), tokenizer.path.name)
    else:
        found = Limit(positions, "config.json")
    most = config.learned_positions
    return found if most is None or found.tokens <= most else Limit(most, "learned positions")


def _class_name(tokenizer: Settings, config: EncoderConfig) -> str:
    stated = tokenizer.raw.get("tokenizer_class") or config.source.get("tokenizer_class")
    if not isinstance(stated, str | None):
        raise ConfigError(f"{tokenizer.path}: tokenizer_class must be a name, not {stated!r:.80}")
    return stated or DEFAULT_CLASS


def _name(settings: Settings, key: str) -> str | None:
    stated = settings.raw.get(key)
    return None if stated is None else str(stated)


def _architectures(config: EncoderConfig, path: Path) -> tuple[str, ...]:
    stated = config.source.get("architectures")
    if not isinstance(stated, list | None):
        raise ConfigError(f"{path}: architectures must be a list of names, not {stated!r:.80}")
    return tuple(map(str, stated or ()))


def _activation(whole: Settings, config: EncoderConfig) -> Any:
    newer, older = map(config.source.get, ACTIVATION_KEYS)
    inner = newer.get("activation_fn") if isinstance(newer, dict) else None
    return whole.raw.get("activation_fn") or inner or older
