"""What the wrappers of this room share: one Embedder, called for documents and for queries.

Where in the flow: langchain.py, llama_index.py, haystack.py and chroma.py each translate it into
the base class of one library. It knows none of them.

A wrapper's settings are plain values that its library can store: a model, keywords of `Embedder`,
keywords of `encode` for both sides, and optionally the fingerprint that the documents' vectors must
have. A store that was filled by another model is thereby refused when it is loaded.
"""

import copy
import json
import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from nomicbert.embedder import Embedder
from nomicbert.errors import ConfigError
from nomicbert.runtime.encode_types import Vectors
from nomicbert.runtime.kept import Kept
from nomicbert.runtime.request import Request, prompted
from nomicbert.vectors.fingerprint import SPACE, Fingerprint, matches

Keywords: TypeAlias = Mapping[str, object]

# Embedders that stay loaded, for all wrappers of a process: those used last.
KEPT = 4
# Of the state that wrappers are pickled as; raised when a field gets another meaning.
FORMAT = 1
# Keywords that hold an access token, which would be stored.
TOKENS = ("token", "use_auth_token")
# Keywords of `encode` that are for one side only.
PROMPTS = ("prompt", "prompt_name")
# Keywords of `encode` that the wrappers decide themselves.
TAKEN = (
    "convert_to_numpy",
    "convert_to_tensor",
    "inputs",
    "output_value",
    "sentences",
    "show_progress_bar",
)
# Those that decide whether the vectors of two calls can be compared.
COMPARED = ("matryoshka_dim", "truncate_dim", "normalize_embeddings", "precision", "ranges")


class Loaded:
    """An Embedder, and the fingerprints of its vectors, which take a while to compute."""

    def __init__(self, embedder: Embedder) -> None:
        """Nothing is computed yet."""
        self.embedder = embedder

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Of the model as it is at the first use; reads all parameters, about 1 s per 2 GB."""
        return Fingerprint.of(self.embedder.embedding_model, self.embedder.tokenizer)


_loaded: "Kept[str, Loaded]" = Kept(KEPT)


class Sides:
    """One model with the keywords of its calls for documents and for queries.

    Attributes:
        model, model_kwargs, encode_kwargs, query_encode_kwargs: as given, in plain values.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        model_kwargs: Keywords | None = None,
        encode_kwargs: Keywords | None = None,
        query_encode_kwargs: Keywords | None = None,
        fingerprint: str | None = None,
        queries_only: bool = False,
    ) -> None:
        """Load the model, or take one that is kept for the same settings and the same files.

        Args:
            model: a local folder or a repository of the hub.
            model_kwargs: keywords of `Embedder`. A token in them would be stored: refused.
            encode_kwargs: keywords of `encode_document`, and of `encode_query` but for prompts and
                lists of devices.
            query_encode_kwargs: more keywords of `encode_query`.
            fingerprint: what `self.fingerprint()` must be; None compares nothing.
            queries_only: name the space alone in fingerprints, whatever prompt documents have.

        Raises: ConfigError: another fingerprint. ValueError, TypeError: invalid keyword, or vectors
            of the two sides that cannot be compared. NomicBertError: the model cannot be loaded.
        """
        self.model, self._queries_only = os.fspath(model), queries_only
        self.model_kwargs = plain_keywords("model_kwargs", model_kwargs)
        self.encode_kwargs = plain_keywords("encode_kwargs", encode_kwargs, TAKEN)
        self.query_encode_kwargs = plain_keywords("query_encode_kwargs", query_encode_kwargs, TAKEN)
        self._document = self.encode_kwargs
        self._query = {**_shared(self.encode_kwargs), **self.query_encode_kwargs}
        key = json.dumps([self.model, self.model_kwargs, _files(self.model)], sort_keys=True)
        self._loaded = _loaded.get(key, lambda: None, self._load)
        # calls without texts only check the keywords
        self.embedder.encode_document([], **self._document)
        self.embedder.encode_query([], **self._query)
        self._check_comparable()
        if fingerprint is not None:
            self.refuse_other(fingerprint)

    def __deepcopy__(self, memo: object) -> "Sides":
        """A copy of a wrapper shares the model."""
        return copy.copy(self)

    @property
    def embedder(self) -> Embedder:
        """The model; all wrappers with the same settings share it."""
        return self._loaded.embedder

    def documents(self, texts: Sequence[str], progress: bool = False) -> Vectors:
        """`encode_document` of n texts: (n, dim) float32, or the dtype of `precision`."""
        keywords = {**self._document, "show_progress_bar": progress}
        return cast("Vectors", self.embedder.encode_document(list(texts), **keywords))

    def queries(self, texts: Sequence[str], progress: bool = False) -> Vectors:
        """`encode_query` of n texts: (n, dim) float32, or the dtype of `precision`."""
        keywords = {**self._query, "show_progress_bar": progress}
        return cast("Vectors", self.embedder.encode_query(list(texts), **keywords))

    def settings(self) -> dict[str, object]:
        """All but the model as plain values to store, under the names of the constructor."""
        return {
            "model_kwargs": dict(self.model_kwargs),
            "encode_kwargs": dict(self.encode_kwargs),
            "query_encode_kwargs": dict(self.query_encode_kwargs),
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """The fingerprint of the documents' vectors, "<space>.<prompt>"; queries share the space.

        With `queries_only`, the space. The parameters are read once for all wrappers of a process
        with the same settings: about a second per 2 GB.

        Raises: ValueError: an adapter or a hook in the model.
        """
        embedder = self.embedder
        request = Request(**self._document).with_default(embedder.truncate_dim)
        found = self._loaded.fingerprint.of_call(request.finish, self._document_prompt())
        return found[:SPACE] if self._queries_only else found

    def refuse_other(self, expected: object) -> None:
        """Compare the fingerprint with a stored one.

        Args:
            expected: a fingerprint; or its space alone, which fits any prompt. Configurations that
                were edited may hold anything.

        Raises: ConfigError: it is another one; the message says which part, and what is here.
        """
        found = self.fingerprint()
        if not isinstance(expected, str):
            raise ConfigError(f"the stored fingerprint must be a str, not {expected!r}")
        if matches(expected[:SPACE] if self._queries_only else expected, found):
            return
        model = self.embedder.model
        request = Request(**self._document).with_default(self.embedder.truncate_dim)
        width = request.width(self.embedder.pooling)
        dtype = f"{model.dtype}, computed in {model.compute_dtype}"
        what = f"weights, tokenizer, pooling, dtype ({dtype}), backend ({model.ops.name}), "
        what += f"width ({width}) or normalisation"
        if expected[:SPACE] == found[:SPACE]:
            what = f"the prompt before documents ({self._document_prompt()!r})"
        raise ConfigError(
            f"the stored vectors have the fingerprint {expected!r}, those of {self.model} here "
            f"{found!r}: they differ in {what}. Load the model with the settings that the vectors "
            f"were made with, or embed the documents again"
        )

    def _load(self, _: None) -> Loaded:
        return Loaded(Embedder(self.model, **self.model_kwargs))

    def _document_prompt(self) -> str:
        embedder = self.embedder
        name = embedder._prompts.document_name
        keywords = prompted(cast("Any", self._document), name, "document", None)
        return embedder._prompts.choose(keywords.get("prompt_name"), keywords.get("prompt"))

    def _check_comparable(self) -> None:
        document, query = Request(**self._document), Request(**self._query)
        for name in COMPARED:
            # form is the precision, of which None is another name for float32
            attribute = "form" if name == "precision" else name
            ours, theirs = getattr(document, attribute), getattr(query, attribute)
            if ours != theirs:
                raise ValueError(
                    f"documents are embedded with {name}={ours!r}, queries with {theirs!r}: their "
                    f"vectors cannot be compared. encode_kwargs are for both; leave {name} out of "
                    "query_encode_kwargs"
                )


def plain_keywords(
    name: str, given: Keywords | None, refused: Collection[str] = ()
) -> dict[str, Any]:
    """Keywords as values of JSON, which every library can store.

    Args:
        name: of the argument, for errors.
        given: str -> plain values, torch dtypes and devices, paths, arrays, and dicts of them.
        refused: keywords that it may not have.

    Raises: TypeError: another value, or a refused keyword. ValueError: an access token.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a dict of keywords, not {given!r}")
    _refuse_tokens(name, given or {})
    found = {key: _plain(f"{name}[{key!r}]", value) for key, value in (given or {}).items()}
    for key in refused:
        if key in found:
            raise TypeError(f"{name} cannot have {key!r}: the wrapper decides it")
    return found


def read_state(kind: type, state: object, names: Collection[str]) -> dict[str, Any]:
    """The settings that a wrapper was pickled with.

    Args:
        kind: class of the wrapper.
        state: what the pickle holds.
        names: of the settings.

    Raises: ConfigError: a pickle of another version, or of another class of this name.
    """
    found = dict(state) if isinstance(state, Mapping) else {}
    version = found.pop("format", None)
    if version == FORMAT and found.keys() == set(names):
        return found
    missing, unknown = sorted(set(names) - found.keys()), sorted(map(str, found.keys() - names))
    raise ConfigError(
        f"this pickle of {kind.__name__} has format {version!r}, wanted {FORMAT}; missing fields: "
        f"{', '.join(missing) or 'none'}; unknown fields: {', '.join(unknown) or 'none'}. It was "
        f"written by another version of nomicbert: make the object anew with its model"
    )


def _shared(encode_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords for documents that queries get too; a query is not worth starting processes."""
    own = {*PROMPTS}
    if isinstance(encode_kwargs.get("device"), list):
        own.add("device")
    return {name: value for name, value in encode_kwargs.items() if name not in own}


def _refuse_tokens(name: str, given: Keywords) -> None:
    for key, value in given.items():
        if key in TOKENS and isinstance(value, str):
            raise ValueError(
                f"{name} has a token ({key}), which would be stored in plain text: set the "
                "environment variable HF_TOKEN, or run `hf auth login`"
            )
        if isinstance(value, Mapping):
            _refuse_tokens(f"{name}[{key!r}]", value)


def _plain(name: str, value: object) -> object:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(name, each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(f"{name}[{key!r}]", each) for key, each in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"{name} must be a plain value that can be stored (str, int, float, bool, None, a list or "
        f"a dict with str keys), a dtype, a device or a path, not {value!r}"
    )


def _files(model: str) -> list[tuple[str, int, int]]:
    """Name, size and time of a folder's files, so that changed ones are loaded again."""
    found = sorted(path for path in Path(model).rglob("*") if path.is_file())
    states = [(str(path), path.stat()) for path in found] if Path(model).is_dir() else []
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]
