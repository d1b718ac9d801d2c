"""truncate="chunk" and "error": treatment of texts beyond the limit.

The tests implement the definition of a text's vector in chunk mode: run each window alone, take the
mean over the tokens of all windows, then apply the steps after pooling.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nomicbert import Embedder
from nomicbert.runtime import batches
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.user_warnings import TruncationWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.odd_tokenizers import tight_unigram
from tests.support.sameness import same
from tests.support.vocabularies import HANZI, SENTENCES, WORDS

LIMIT = 16
EXACT = [" ".join(WORDS[5 : 5 + LIMIT - 2 + more]) for more in (0, 1)]
TEXTS = [*SENTENCES, "", "the river is long and deep " * 9, "fox", *EXACT]
CHINESE = ["".join(HANZI[i : i + n]) for i, n in ((0, 50), (3, 14), (9, 15), (20, 1))]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Embedder]]:
    @functools.cache
    def build(variant: str) -> tuple[Path, Embedder]:
        folder = tmp_path_factory.mktemp(variant)
        build_checkpoint(folder, variant, num_hidden_layers=2)
        return folder, Embedder(folder)

    return build


@pytest.fixture
def minilm(load: Callable[[str], tuple[Path, Embedder]]) -> Embedder:
    return load("minilm")[1]


def _windows(embedder: Embedder, text: str, prompt: str, limit: int) -> list[list[int]]:
    """The ids of a text's windows, none longer than `limit`."""
    tokenizer = embedder.tokenizer
    opening, body = (
        tokenizer.rust.encode(part, add_special_tokens=False).ids
        for part in (prompt, prompt + text)
    )
    assert body[: len(opening)] == opening
    head = [*tokenizer.prefix, *opening]
    room = limit - len(head) - len(tokenizer.suffix)
    rest = body[len(opening) :]
    starts = range(0, max(len(rest), 1), room)
    return [[*head, *rest[i : i + room], *tokenizer.suffix] for i in starts]


def _written_out(
    folder: Path,
    embedder: Embedder,
    text: str,
    prompt: str,
    limit: int,
    *,
    dim: int | None = None,
    normed: bool = False,
    unit: bool = False,
) -> np.ndarray:
    """The vector of one text by the definition, in float64 after the encoder."""
    windows = _windows(embedder, text, prompt, limit)
    with torch.no_grad():
        states = [embedder.model(torch.tensor([ids])).last_hidden_state[0] for ids in windows]
    hidden = torch.cat(states).double().numpy()
    vector = hidden.sum(0) / sum(map(len, windows))
    if (folder / "2_Dense").is_dir():
        layer = load_file(folder / "2_Dense" / "model.safetensors")
        vector = layer["linear.weight"].double().numpy() @ vector + layer["linear.bias"].numpy()
    if normed:
        vector = (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5)
    vector = vector[:dim]
    return vector / np.linalg.norm(vector) if unit else vector


@pytest.mark.parametrize(
    ("variant", "keywords", "recipe"),
    [
        ("minilm", {}, {"unit": True}),
        ("minilm", {"prompt": "search query: "}, {"unit": True}),
        ("conan-v1", {}, {}),
        ("conan-v1", {"truncate_dim": 20, "normalize_embeddings": True}, {"dim": 20, "unit": True}),
        ("conan-v1", {"matryoshka_dim": 20}, {"dim": 20, "unit": True}),
        ("nomic-v1.5", {"prompt": ""}, {}),
        ("nomic-v1.5", {"prompt_name": "clustering"}, {}),
        (
            "nomic-v1.5",
            {"prompt_name": "search_query", "matryoshka_dim": 24},
            {"dim": 24, "normed": True, "unit": True},
        ),
        ("nomic-v2-moe", {"prompt_name": "passage"}, {"unit": True}),
        ("nomic-v2-moe", {"matryoshka_dim": 24}, {"dim": 24, "unit": True}),
    ],
)
def test_chunk_equals_its_definition(
    variant: str,
    keywords: dict[str, Any],
    recipe: dict[str, Any],
    load: Callable[[str], tuple[Path, Embedder]],
) -> None:
    folder, embedder = load(variant)
    name = keywords.get("prompt_name")
    prompt = embedder.prompts[name] if name else keywords.get("prompt", "")
    texts = TEXTS if embedder.tokenizer.rust.token_to_id("北") is None else [*TEXTS, *CHINESE]
    found = embedder.encode(texts, truncate="chunk", max_length=LIMIT, **keywords)
    wanted = [_written_out(folder, embedder, text, prompt, LIMIT, **recipe) for text in texts]
    np.testing.assert_allclose(found, np.stack(wanted), rtol=0, atol=2e-6)
    counts = [len(_windows(embedder, text, prompt, LIMIT)) for text in texts]
    assert max(counts) > 3
    assert min(counts) == 1
    with pytest.warns(TruncationWarning):
        first = embedder.encode(texts, max_length=LIMIT, **keywords)
    far = np.abs(found - first).max(axis=1) > 1e-3
    assert far.tolist() == [count > 1 for count in counts]


@pytest.mark.parametrize("variant", ["minilm", "conan-v1", "nomic-v1.5", "nomic-v2-moe", "gte"])
@pytest.mark.parametrize("keywords", [{}, {"matryoshka_dim": 24}, {"truncate_dim": 24}])
def test_text_that_fits_is_bit_identical(
    variant: str, keywords: dict[str, Any], load: Callable[[str], tuple[Path, Embedder]]
) -> None:
    _, embedder = load(variant)
    texts = [*TEXTS, *CHINESE]
    plain = embedder.encode(texts, prompt="", **keywords)
    chunks = embedder.encode(texts, prompt="", truncate="chunk", **keywords)
    assert same(chunks, plain)


def test_vector_does_not_depend_on_the_batch(minilm: Embedder) -> None:
    def encode(texts: list[str], **keywords: Any) -> np.ndarray:
        return minilm.encode(texts, truncate="chunk", max_length=LIMIT, **keywords)

    alone = np.stack([encode([text])[0] for text in TEXTS])
    assert same(encode(TEXTS), alone)
    assert same(encode(TEXTS[::-1]), alone[::-1])
    assert same(encode(TEXTS, batch_tokens=20), alone)
    assert same(encode(TEXTS, batch_size=1), alone)


@pytest.mark.parametrize("truncate", ["chunk", "mean"])
def test_windows_count_all_characters(
    truncate: Any, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In these modes all characters are tokenised, so all of them count."""
    seen: list[int] = []
    encode_windows = Tokenizer.encode_windows

    def spy(tokenizer: Tokenizer, texts: list[str], *rest: Any) -> list[list[list[int]]]:
        seen.append(len(texts))
        return encode_windows(tokenizer, texts, *rest)

    monkeypatch.setattr(Tokenizer, "encode_windows", spy)
    monkeypatch.setattr(batches, "WINDOW_CHARACTERS", 1000)
    minilm.encode(["fox " * 250] * 3, truncate=truncate, max_length=LIMIT)
    assert seen == [1, 1, 1]


def test_prompt_that_fills_the_window(minilm: Embedder) -> None:
    prompt = "fox " * (LIMIT - 3)
    keywords: dict[str, Any] = {"truncate": "chunk", "max_length": LIMIT}
    for text in ("", "dog", "dog " * 40):  # each window has room for one token of the text
        assert np.isfinite(minilm.encode(text, prompt=prompt, **keywords)).all()
    for text in ("", "dog", "dog " * 40):
        with pytest.raises(ValueError, match=r"'fox .*' alone fills windows of 16 tokens"):
            minilm.encode(text, prompt=prompt + "fox ", **keywords)


def test_prompt_that_merges_with_the_text(minilm: Embedder) -> None:
    """The common token belongs to the text: windows repeat only tokens of the prompt alone."""
    ids = minilm.tokenizer.rust.encode
    assert len(ids("jump", add_special_tokens=False).ids) == 1
    (windows,) = minilm.tokenizer.encode_windows(["mp " + "fox " * 6], "the ju", 8)
    words = [[minilm.tokenizer.rust.id_to_token(i) for i in window] for window in windows]
    assert words == [
        ["[CLS]", "the", "jump", "fox", "fox", "fox", "fox", "[SEP]"],
        ["[CLS]", "the", "fox", "fox", "[SEP]"],
    ]


def test_no_special_tokens() -> None:
    tokenizer = Tokenizer(tight_unigram())
    assert (tokenizer.prefix, tokenizer.suffix) == ([], [])
    (empty, long) = tokenizer.encode_windows(["", "王" * 5], "", 3)
    assert empty == [[]]
    assert [len(window) for window in long] == [3, 3]


def test_text_without_tokens_gives_zeros(tmp_path: Path) -> None:
    """As without chunks, even if a Dense layer has a bias."""
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    path = tmp_path / "tokenizer.json"
    raw = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(raw | {"post_processor": None}), "utf-8")
    path = tmp_path / "tokenizer_config.json"  # BERT's own class would add its special tokens
    raw = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(raw | {"tokenizer_class": "PreTrainedTokenizerFast"}), "utf-8")
    embedder = Embedder(tmp_path)
    plain = embedder.encode(["", "fox"])
    assert not plain[0].any()
    chunked = embedder.encode(["", "fox"], truncate="chunk")
    assert not chunked[0].any()
    assert same(chunked[1], plain[1])


@pytest.mark.parametrize("variant", ["bge-en", "bge-zh"])
def test_cls_pooling_is_refused(variant: str, load: Callable[[str], tuple[Path, Embedder]]) -> None:
    _, embedder = load(variant)
    for encode in (embedder.encode, embedder.encode_query, embedder.encode_iter):
        with pytest.raises(ValueError, match=r"only mean pooling does: .* pools by cls"):
            encode(["fox"], truncate="chunk")


def test_token_embeddings_are_refused(minilm: Embedder) -> None:
    with pytest.raises(ValueError, match="one vector, not token_embeddings"):
        minilm.encode(["fox"], truncate="chunk", output_value="token_embeddings")


def test_error_names_the_text(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    fits, long = "fox " * (LIMIT - 2), "fox " * (LIMIT - 1)
    keywords: dict[str, Any] = {"truncate": "error", "max_length": LIMIT}
    assert same(minilm.encode([fits] * 5, **keywords), minilm.encode([fits] * 5))
    with pytest.raises(ValueError, match="input 2 is longer than 16 tokens: shorten it, or choose"):
        minilm.encode([fits, "", long, long], **keywords)
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 3)
    with pytest.raises(ValueError, match="input 7 is longer than 16 tokens"):
        minilm.encode([*[fits] * 7, long], **keywords)
    stream = minilm.encode_iter([*[fits] * 7, long], **keywords)
    assert len([next(stream) for _ in range(6)]) == 6
    with pytest.raises(ValueError, match="input 7 is longer than 16 tokens"):
        next(stream)
    with pytest.raises(ValueError, match="input 0 is longer"):  # the prompt counts
        minilm.encode(fits, prompt="fox ", **keywords)
