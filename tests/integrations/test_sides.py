"""Sides: prompts of both sides, plain settings, models that are kept, fingerprints, old pickles."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.errors import ConfigError
from nomicbert.integrations import sides
from nomicbert.integrations.sides import FORMAT, Sides, plain_keywords, read_state
from tests.support.checkpoints import build_checkpoint
from tests.support.integrations import DOCUMENTS, QUERY, nomic

EXTRAS = {
    "chroma": ("chromadb", "chroma"),
    "haystack": ("haystack", "haystack"),
    "langchain": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nomic(tmp_path_factory.mktemp("nomic"))


@pytest.fixture(scope="module")
def embedder(folder: str) -> Embedder:
    return Embedder(folder)


def test_both_sides_get_their_prompts(folder: str, embedder: Embedder) -> None:
    both = Sides(folder)
    documents, query = both.documents(DOCUMENTS), both.queries([QUERY])
    np.testing.assert_array_equal(documents, embedder.encode_document(DOCUMENTS))
    np.testing.assert_array_equal(query, embedder.encode_query([QUERY]))
    assert not np.array_equal(query, embedder.encode([QUERY], prompt=""))
    assert not np.array_equal(both.documents([QUERY]), query)


def test_keywords_are_for_both_sides_and_prompts_for_one(folder: str, embedder: Embedder) -> None:
    both = Sides(folder, None, {"matryoshka_dim": 32, "prompt_name": "clustering"})
    wanted = embedder.encode(DOCUMENTS, matryoshka_dim=32, prompt_name="clustering")
    np.testing.assert_array_equal(both.documents(DOCUMENTS), wanted)
    np.testing.assert_array_equal(
        both.queries([QUERY]), embedder.encode_query([QUERY], matryoshka_dim=32)
    )
    own = Sides(folder, None, {"matryoshka_dim": 32}, {"prompt": "q: "})
    np.testing.assert_array_equal(
        own.queries([QUERY]), embedder.encode([QUERY], matryoshka_dim=32, prompt="q: ")
    )


def test_processes_are_for_documents(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting some for one query takes seconds."""
    several = Sides(folder, None, {"device": ["cpu", "cpu"], "max_length": 16})
    found = []
    for name in ("encode_document", "encode_query"):
        monkeypatch.setattr(several.embedder, name, lambda _, **given: found.append(given))
    several.documents(DOCUMENTS)
    several.queries([QUERY])
    same = {"max_length": 16, "show_progress_bar": False}
    assert found == [{"device": ["cpu", "cpu"], **same}, same]
    Sides(folder, None, {"device": "cpu"}).queries([QUERY])
    assert found[-1] == {"device": "cpu", "show_progress_bar": False}


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"matryoshka_dim": 16}, "matryoshka_dim=32, queries with 16"),
        ({"precision": "binary"}, "precision='float32', queries with 'binary'"),
        ({"normalize_embeddings": True}, "normalize_embeddings=False, queries with True"),
    ],
)
def test_sides_that_cannot_be_compared(folder: str, query: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        Sides(folder, None, {"matryoshka_dim": 32}, query)


def test_precision_with_ranges(folder: str, embedder: Embedder) -> None:
    """Ranges are an array, which is stored as a list."""
    full = embedder.encode_document(DOCUMENTS)
    ranges = np.stack([full.min(0) - 1, full.max(0) + 1]).astype(np.float32)
    both = Sides(folder, None, {"precision": "int8", "ranges": ranges})
    wanted = embedder.encode_document(DOCUMENTS, precision="int8", ranges=ranges)
    np.testing.assert_array_equal(both.documents(DOCUMENTS), wanted)
    assert both.queries([QUERY]).dtype == np.int8
    assert both.encode_kwargs["ranges"] == ranges.tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"model_kwargs": {"token": "hf_secret"}}, ValueError, "HF_TOKEN"),
        ({"model_kwargs": {"use_auth_token": "hf_secret"}}, ValueError, "HF_TOKEN"),
        ({"model_kwargs": {"model_kwargs": {"token": "hf_secret"}}}, ValueError, "HF_TOKEN"),
        (
            {"model_kwargs": {"prompts": {1: "x"}}},
            TypeError,
            r"\['prompts'\] must be a plain value",
        ),
        ({"encode_kwargs": {"convert_to_tensor": True}}, TypeError, "convert_to_tensor"),
        ({"query_encode_kwargs": {"inputs": "x"}}, TypeError, "query_encode_kwargs cannot have"),
        ({"encode_kwargs": {"promt": "x"}}, TypeError, "did you mean 'prompt'"),
        ({"query_encode_kwargs": {"prompt_name": "qeury"}}, ValueError, "qeury"),
        ({"model_kwargs": {"device": object()}}, TypeError, r"model_kwargs\['device'\] must be"),
        ({"encode_kwargs": ["prompt"]}, TypeError, "must be a dict"),
    ],
)
def test_refused(folder: str, arguments: dict[str, Any], error: type, named: str) -> None:
    with pytest.raises(error, match=named) as caught:
        Sides(folder, **arguments)
    assert "hf_secret" not in str(caught.value)


def test_plain_values() -> None:
    given = {
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "cache_dir": Path("a/b"),
        "devices": ("cpu", torch.device("cpu")),
        "count": np.int64(3),
        "flag": True,
        "none": None,
        "prompts": {"query": "q: ", "sizes": (np.int64(3),)},
    }
    assert plain_keywords("x", given) == {
        "dtype": "bfloat16",
        "device": "cpu",
        "cache_dir": str(Path("a/b")),
        "devices": ["cpu", "cpu"],
        "count": 3,
        "flag": True,
        "none": None,
        "prompts": {"query": "q: ", "sizes": [3]},
    }


def test_prompts_reach_the_model(folder: str, embedder: Embedder) -> None:
    own = Sides(folder, {"prompts": {"query": "q: "}})
    np.testing.assert_array_equal(own.queries([QUERY]), embedder.encode([QUERY], prompt="q: "))


def test_no_precision_is_float32(folder: str, embedder: Embedder) -> None:
    both = Sides(folder, None, {"precision": None}, {"precision": "float32"})
    np.testing.assert_array_equal(both.queries([QUERY]), embedder.encode_query([QUERY]))


def test_a_dtype_reaches_the_model(folder: str) -> None:
    both = Sides(folder, {"dtype": torch.bfloat16})
    assert both.embedder.model.dtype == torch.bfloat16
    assert Sides(folder, {"dtype": "bfloat16"}).embedder is both.embedder


def test_equal_settings_share_a_model_until_its_files_change(tmp_path: Path) -> None:
    where = nomic(tmp_path / "m")
    first = Sides(where)
    assert Sides(where, encode_kwargs={"max_length": 16}).embedder is first.embedder
    assert copy.deepcopy(first).embedder is first.embedder
    nomic(tmp_path / "m", seed=1)
    second = Sides(where)
    assert not np.array_equal(second.documents(DOCUMENTS), first.documents(DOCUMENTS))
    assert second.fingerprint() != first.fingerprint()


def test_few_models_are_kept(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sides._loaded.clear()
    monkeypatch.setattr(sides._loaded, "most", 1)
    first = Sides(folder).embedder
    Sides(folder, {"dtype": "bfloat16"})
    assert Sides(folder).embedder is not first


def test_the_fingerprint_is_that_of_the_documents(folder: str, embedder: Embedder) -> None:
    found = Sides(folder).fingerprint()
    assert found == embedder.fingerprint(prompt_name="search_document")
    short = Sides(folder, None, {"matryoshka_dim": 32, "prompt": "d: "}, {"prompt": "q: "})
    assert short.fingerprint() == embedder.fingerprint(prompt="d: ", matryoshka_dim=32)
    alone = Sides(folder, queries_only=True)
    assert alone.fingerprint() == found.partition(".")[0]
    # what is stored is accepted again, by both
    for fingerprint in (found, alone.fingerprint()):
        Sides(folder, fingerprint=fingerprint)
        Sides(folder, None, {"prompt": "q: "}, fingerprint=fingerprint.partition(".")[0])
        Sides(folder, None, {"prompt": "q: "}, fingerprint=fingerprint, queries_only=True)


def test_parameters_are_read_once(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Sides(folder, {"dtype": "float16"}).fingerprint()
    monkeypatch.setattr(sides.Fingerprint, "of", None)
    assert Sides(folder, {"dtype": "float16"}).fingerprint() == found
    assert Sides(folder, {"dtype": "float16"}, {"prompt": "x"}).fingerprint()[:32] == found[:32]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"model_kwargs": {"dtype": "bfloat16"}},
            "weights, .*dtype .torch.bfloat16, computed in torch",
        ),
        ({"encode_kwargs": {"matryoshka_dim": 32}}, "weights, .*width .32. or"),
        ({"encode_kwargs": {"prompt": "d: "}}, "they differ in the prompt before documents .'d: '"),
    ],
)
def test_another_fingerprint(folder: str, settings: dict[str, Any], named: str) -> None:
    stored = Sides(folder).fingerprint()
    with pytest.raises(ConfigError, match=named) as caught:
        Sides(folder, fingerprint=stored, **settings)
    assert stored in str(caught.value)


def test_another_model(folder: str, tmp_path: Path) -> None:
    other = Sides(str(build_checkpoint(tmp_path, "minilm")))
    with pytest.raises(ConfigError, match=f"those of {re.escape(folder)} here .* differ in weigh"):
        Sides(folder, fingerprint=other.fingerprint())
    with pytest.raises(ConfigError, match="must be a str, not None"):
        other.refuse_other(None)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"__dict__": {"model_name": "x"}}, "format None, wanted 1; missing fields: a, b; unknown"),
        ({"format": FORMAT, "a": 1}, "missing fields: b; unknown fields: none"),
        ({"format": FORMAT + 1, "a": 1, "b": 2}, "has format 2, wanted 1"),
        ({"format": FORMAT, "a": 1, "b": 2, "c": 3}, "missing fields: none; unknown fields: c"),
        (None, "missing fields: a, b"),
    ],
)
def test_pickles_of_other_versions(state: Any, named: str) -> None:
    assert read_state(Sides, {"format": FORMAT, "a": 1, "b": 2}, ["a", "b"]) == {"a": 1, "b": 2}
    with pytest.raises(ConfigError, match=f"this pickle of Sides .*{named}"):
        read_state(Sides, state, ["a", "b"])


WITHOUT = """
import importlib, sys
for module, library in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.modules[library] = None
    try:
        importlib.import_module(f"nomicbert.integrations.{module}")
    except ImportError as error:
        print(error, type(error.__cause__).__name__)
"""


def test_without_the_libraries() -> None:
    """The errors name the extras; the libraries are hidden where they are installed."""
    pairs = [name for module, (library, _) in EXTRAS.items() for name in (module, library)]
    command = [sys.executable, "-c", WITHOUT, *pairs]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wanted = [rf'\w.*: pip install "\S*\[{extra}\]" Module\w+' for _, extra in EXTRAS.values()]
    assert re.fullmatch("\n".join(wanted), done.stdout.strip())
