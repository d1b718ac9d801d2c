"""truncate="mean": the recipe of the hosted API's long_text_mode="mean".

The judge is written out here, in float64 after the encoder: the ids of the `tokenizers` library,
windows cut by hand, one forward pass for each, pooling, the steps after it, L2, mean, L2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from nomicbert import Embedder
from nomicbert.runtime import batches, workers
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES, WORDS

LIMIT = 24
BOUND = 1e-6
PROMPT = "search_query: "
# texts of every number of tokens around one window and around two, special tokens not counted
SIZES = (0, 1, 8, 9, 21, 22, 23, 24, 29, 30, 35, 36, 37, 38, 80)
EXACT = [" ".join((WORDS[3:] + WORDS)[i % 7 : i % 7 + n]) for i, n in enumerate(SIZES)]
TEXTS = [*EXACT, *SENTENCES[:4], "the river is long and deep " * 9]
Load = Callable[[str], tuple[Path, Embedder]]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    @functools.cache
    def build(variant: str) -> tuple[Path, Embedder]:
        folder = tmp_path_factory.mktemp(variant)
        build_checkpoint(folder, variant, num_hidden_layers=2)
        return folder, Embedder(folder)

    return build


def starts(size: int, room: int, overlap: int) -> list[int]:
    """Where windows of `room` tokens begin: by steps, until one reaches the end of the text."""
    found = [0]
    while found[-1] + room < size:
        found.append(found[-1] + room - overlap)
    return found


def judge(
    folder: Path,
    model: Any,
    text: str,
    prompt: str = "",
    *,
    pooling: str = "mean",
    skips_prompt: bool = False,
    layer_norm: bool = False,
    dim: int | None = None,
    fault: str = "",
) -> np.ndarray:
    """The vector of one text, in float64."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    head, body = (tokenizer.encode(part, add_special_tokens=False).ids for part in (prompt, text))
    cls, sep = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    room = LIMIT - len(head) - 2
    units, sizes = [], []
    for start in starts(len(body), room, 7 if fault == "overlap" else 8):
        opening = [] if fault == "prompt once" and start else head
        ids = [cls, *opening, *body[start : start + room], sep]
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
        kept = states[1 + len(head) if skips_prompt and head else 0 :]
        vector = kept[0] if pooling == "cls" else kept.sum(0) / len(kept)
        if (folder / "2_Dense").is_dir():
            layer = load_file(folder / "2_Dense" / "model.safetensors")
            vector = layer["linear.weight"].double().numpy() @ vector + layer["linear.bias"].numpy()
        if layer_norm:
            vector = (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5)
        units.append(vector[:dim] / np.sqrt((vector[:dim] ** 2).sum()))
        sizes.append(len(ids))
    total: np.ndarray = np.average(units, axis=0, weights=sizes if fault == "weights" else None)
    return total if fault == "no L2" else total / np.sqrt((total**2).sum())


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "nomic": ("nomic-v1.5", {"prompt": ""}, {}),
    "nomic, prompt": ("nomic-v1.5", {"prompt_name": "search_query"}, {"prompt": PROMPT}),
    "nomic, recipe": (
        "nomic-v1.5",
        {"prompt_name": "search_query", "matryoshka_dim": 24},
        {"prompt": PROMPT, "dim": 24, "layer_norm": True},
    ),
    "nomic, recipe over all columns": (
        "nomic-v1.5",
        {"prompt_name": "search_query", "matryoshka_dim": 64},
        {"prompt": PROMPT, "layer_norm": True},
    ),
    "nomic, slice": (
        "nomic-v1.5",
        {"prompt": PROMPT, "truncate_dim": 20},
        {"prompt": PROMPT, "dim": 20},
    ),
    "positions": ("e5", {"prompt": ""}, {}),
    "positions, prompt": ("e5", {"prompt_name": "query"}, {"prompt": "query: "}),
    "positions, no L2": ("gte", {"normalize_embeddings": False}, {}),
    "first token": ("bge-en", {"prompt": ""}, {"pooling": "cls"}),
    "first token, prompt": (
        "bge-en",
        {"prompt": PROMPT, "matryoshka_dim": 24},
        {"prompt": PROMPT, "dim": 24, "pooling": "cls"},
    ),
    "Dense": ("conan-v1", {}, {}),
    "Dense, slice": (
        "conan-v1",
        {"prompt": PROMPT, "matryoshka_dim": 20},
        {"prompt": PROMPT, "dim": 20},
    ),
    "without prompt": ("e5", {"prompt": PROMPT}, {"prompt": PROMPT, "skips_prompt": True}),
    "without prompt, first token": (
        "bge-en",
        {"prompt": PROMPT},
        {"prompt": PROMPT, "skips_prompt": True, "pooling": "cls"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_mean_equals_its_definition(case: str, load: Load) -> None:
    variant, keywords, recipe = CASES[case]
    folder, embedder = load(variant)
    if recipe.get("skips_prompt"):
        embedder = Embedder(folder)
        embedder.pooling.include_prompt = False
    found = embedder.encode(TEXTS, truncate="mean", max_length=LIMIT, **keywords)
    wanted = np.stack([judge(folder, embedder.model, text, **recipe) for text in TEXTS])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUND)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=BOUND)


@pytest.mark.parametrize("fault", ["overlap", "weights", "prompt once", "no L2"])
@pytest.mark.parametrize("case", ["nomic, recipe", "positions, prompt", "first token, prompt"])
def test_faults_exceed_the_bound(fault: str, case: str, load: Load) -> None:
    variant, keywords, recipe = CASES[case]
    folder, embedder = load(variant)
    found = embedder.encode(TEXTS[-1], truncate="mean", max_length=LIMIT, **keywords)
    wrong = judge(folder, embedder.model, TEXTS[-1], fault=fault, **recipe)
    assert np.abs(found - wrong).max() > 10 * BOUND


def test_windows_around_the_limit(load: Load) -> None:
    """A text of exactly one window has one; one token more makes a second of 9."""
    tokenizer = load("nomic-v1.5")[1].tokenizer
    room = LIMIT - 2
    words = [tokenizer.rust.token_to_id(word) for word in (WORDS * 3)[:100]]
    for size in (0, 1, room, room + 1, 2 * room - 8, 2 * room - 7, 100):
        text = " ".join((WORDS * 3)[:size])
        (windows,) = tokenizer.encode_windows([text], "", LIMIT, 8)
        bodies = [window[1:-1] for window in windows]
        expected = starts(size, room, 8)
        assert bodies == [words[:size][start : start + room] for start in expected]
        assert all(len(body) == room for body in bodies[:-1])
        assert len(bodies) == 1 or len(bodies[-1]) > 8
    counts = [len(starts(size, room, 8)) for size in (0, room, room + 1, 36, 37)]
    assert counts == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1", "bge-en", "e5", "nomic-v2-moe"])
@pytest.mark.parametrize("keywords", [{}, {"matryoshka_dim": 24}, {"truncate_dim": 24}])
def test_text_of_one_window_is_bit_identical(
    variant: str, keywords: dict[str, Any], load: Load
) -> None:
    _, embedder = load(variant)
    long = "the river is long and deep " * 99
    for prompt in ("", PROMPT):
        plain = embedder.encode(TEXTS, prompt=prompt, normalize_embeddings=True, **keywords)
        for unit in (False, True):
            found = embedder.encode(
                [*TEXTS, long],
                prompt=prompt,
                truncate="mean",
                max_length=200,
                normalize_embeddings=unit,
                **keywords,
            )
            assert same(found[:-1], plain)


@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en", "conan-v1"])
def test_vector_does_not_depend_on_the_batch(
    variant: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, embedder = load(variant)
    keywords: dict[str, Any] = {"truncate": "mean", "max_length": LIMIT, "prompt": PROMPT}

    def encode(texts: list[str], **more: Any) -> np.ndarray:
        return embedder.encode(texts, **keywords, **more)

    alone = np.stack([encode([text])[0] for text in TEXTS])
    assert same(encode(TEXTS), alone)
    assert same(encode(TEXTS[::-1]), alone[::-1])
    assert same(encode(TEXTS * 3, batch_tokens=30), np.concatenate([alone] * 3))
    assert same(encode(TEXTS, batch_size=1), alone)
    assert same(embedder.encode(TEXTS[-1], **keywords), alone[-1])
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)
    assert same(np.stack([*embedder.encode_iter(TEXTS, **keywords)]), alone)


def test_several_processes(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LEAST_CHARACTERS", 60)
    _, embedder = load("nomic-v1.5")
    keywords: dict[str, Any] = {"truncate": "mean", "max_length": LIMIT, "matryoshka_dim": 24}
    wanted = embedder.encode(TEXTS, prompt=PROMPT, **keywords)
    found = embedder.encode(TEXTS, prompt=PROMPT, device=["cpu", "cpu"], **keywords)
    assert same(found, wanted)


def test_queries_and_documents(load: Load) -> None:
    _, embedder = load("nomic-v1.5")
    keywords: dict[str, Any] = {"truncate": "mean", "max_length": LIMIT}
    long = TEXTS[-1]
    for encode, name in (
        (embedder.encode_query, "search_query"),
        (embedder.encode_document, "search_document"),
    ):
        assert same(encode(long, **keywords), embedder.encode(long, prompt_name=name, **keywords))


def test_precision(load: Load) -> None:
    """Quantised at the very end."""
    _, embedder = load("nomic-v1.5")
    keywords: dict[str, Any] = {"truncate": "mean", "max_length": LIMIT, "prompt": ""}
    plain = embedder.encode(TEXTS, **keywords)
    found = embedder.encode(TEXTS, precision="binary", **keywords)
    assert np.array_equal(found, np.packbits(plain > 0, axis=1).view(np.int8) ^ np.int8(-128))
    ranges = np.stack([np.full(64, -1), np.full(64, 1)]).astype(np.float32)
    small = embedder.encode(TEXTS, precision="uint8", ranges=ranges, **keywords)
    assert np.abs(small.astype(float) - (plain + 1) / 2 * 255).max() <= 1


def test_no_room_for_the_overlap(load: Load) -> None:
    """Windows of 9 tokens of the text are the smallest; a text that would fit is refused too."""
    _, embedder = load("bge-en")
    prompt = "fox " * (LIMIT - 11)
    for text in ("", "dog", "dog " * 40):
        assert embedder.encode(text, prompt=prompt, truncate="mean", max_length=LIMIT).any()
        with pytest.raises(
            ValueError, match=r"'fox .*' and 8 tokens of overlap fill windows of 24"
        ):
            embedder.encode(text, prompt=prompt + "fox ", truncate="mean", max_length=LIMIT)
