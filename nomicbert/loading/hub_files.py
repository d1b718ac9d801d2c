"""The files of a repository that loading reads, by name: `hub` fetches these and no others.

Source: the file names as in the repositories of the supported checkpoints, and the folders that
modules.json of sentence-transformers states. Until its version 1 the encoder had one of its own,
0_Transformer.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nomicbert.loading.folder import encoder_of, read_modules
from nomicbert.loading.sentence_settings import TRANSFORMER_FILES

MODULES: Final = "modules.json"
WEIGHTS: Final = "model.safetensors"
OLD_WEIGHTS: Final = "pytorch_model.bin"
_INDEX: Final = "model.safetensors.index.json"
_OLD_INDEX: Final = "pytorch_model.bin.index.json"
_SETTINGS: Final = frozenset(
    {
        *TRANSFORMER_FILES,
        MODULES,
        "README.md",  # holds the licence
        "adapter_config.json",  # names an adapter, which is refused
        "added_tokens.json",
        "config.json",
        "config_sentence_transformers.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
)
_SHARD: Final = re.compile(r"model-\d+-of-\d+\.safetensors")
_OLD_SHARD: Final = re.compile(r"pytorch_model-\d+-of-\d+\.bin")


def read_layout(folder: Path) -> tuple[str, list[str]]:
    """The encoder's folder and those of all modules, relative to the top ("" is the top itself).

    Args:
        folder: holds modules.json, or is of a checkpoint without it.

    Raises: ConfigError: modules.json is damaged, or names a path outside of the folder.
    """
    modules = read_modules(folder, custom=True)
    places = [encoder_of(folder, modules), *(module.folder for module in modules or ())]
    names = [place.relative_to(folder).as_posix() for place in places]
    encoder, *others = ["" if name == "." else name for name in names]
    return encoder, others


def choose_files(
    names: Iterable[str],
    encoder: str = "",
    modules: Iterable[str] = (),
    safetensors: bool | None = None,
) -> list[str]:
    """Choose the files of a repository that loading reads.

    Weights come from safetensors, whole or in shards; `pytorch_model.bin` is the last resort.

    Args:
        names: every file of the repository, as paths relative to its top.
        encoder: the folder of the encoder; "" is the top.
        modules: the folders of the modules.
        safetensors: True chooses no .bin, False no safetensors.
    Returns: the chosen paths, sorted; without any weights among them if the repository has none.
    """
    present: dict[str, set[str]] = {}
    for name in names:
        place, _, file = name.rpartition("/")
        present.setdefault(place, set()).add(file)
    chosen = present.get("", set()) & _SETTINGS
    if MODULES not in chosen:  # by this file `vectors.modules` sees that modules.json was lost
        chosen |= {f"{p}/config.json" for p, files in present.items() if _lost(p, files)}
    for place in {encoder, *modules}:
        files = present.get(place, set())
        found = (files & _SETTINGS) | _weights(files, safetensors)
        chosen |= {f"{place}/{file}" if place else file for file in found}
    return sorted(chosen)


def lacks(files: Iterable[str], encoder: str, asked: bool = False) -> str:
    """What the encoder's folder lacks, as a part of a sentence; "" if it can be loaded.

    Args:
        files: the chosen paths.
        encoder: the folder of the encoder.
        asked: whether the caller named it; else modules.json did.
    """
    at = f"{encoder}/" if encoder else ""
    why = "" if asked else ", where its modules.json has the encoder"
    where = f"in {encoder!r}{why}" if encoder else ""
    found = {name.removeprefix(at) for name in files if name.startswith(at)}
    if "config.json" not in found:
        return f"config.json {where}".rstrip()
    if not {WEIGHTS, _INDEX, OLD_WEIGHTS, _OLD_INDEX} & found:
        return f"{WEIGHTS} and no {OLD_WEIGHTS} {where or 'at its top level'}"
    return ""


def _lost(place: str, files: set[str]) -> bool:
    return place.endswith("_Pooling") and "config.json" in files


def _weights(files: set[str], safetensors: bool | None) -> set[str]:
    """The weight files of one folder, in one format."""
    for whole, index, shard in (
        (WEIGHTS, _INDEX, _SHARD),
        (OLD_WEIGHTS, _OLD_INDEX, _OLD_SHARD),
    ):
        if safetensors not in (None, whole == WEIGHTS):
            continue
        if whole in files:
            return {whole}
        if index in files:
            return {index, *filter(shard.fullmatch, files)}
    return set()
