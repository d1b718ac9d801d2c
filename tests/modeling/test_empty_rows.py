"""Rows of an attention mask that keep no token, and empty texts, give zeros and never NaN.

New memory is filled with NaN here, so that no result is zero by chance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nomicbert import Embedder, NomicBert
from nomicbert.modeling.packing import pack, unpad
from nomicbert.user_warnings import EmptyRowWarning
from nomicbert.vectors.pooling import Finish
from tests.support.checkpoints import build_checkpoint
from tests.support.cpus import CPU_DTYPES

BACKENDS = ("reference", "torch")
MODES = ("mean", "cls", "max", "mean_sqrt_len", "lasttoken", "weightedmean")
# Dense layer with a bias · final L2 · layer_norm in the Matryoshka recipe
VARIANTS = ("conan-v1", "bge-en", "nomic-v1.5")
FINISHES = (
    Finish(),
    Finish(matryoshka_dim=24),
    Finish(truncate_dim=24),
    Finish(matryoshka_dim=24, normalize=True),
    Finish(normalize=True),
)
LENGTHS = (9, 5, 9, 1, 7)
IDS = torch.arange(5, 5 + 5 * 9).view(5, 9)
MASK = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
# rows that keep no token; at least two others remain: a single row uses another matmul kernel
EMPTY = ((2,), (0,), (4,), (0, 1, 4))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def embedders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Embedder]:
    """One embedder for each variant and backend, of two layers."""
    made: dict[tuple[str, str], Embedder] = {}

    def of(variant: str, backend: str) -> Embedder:
        if (variant, backend) not in made:
            folder = build_checkpoint(
                tmp_path_factory.mktemp("empty"), variant, num_hidden_layers=2
            )
            made[variant, backend] = Embedder(folder, backend=backend)
        return made[variant, backend]

    return of


def without(rows: tuple[int, ...]) -> tuple[Tensor, list[int]]:
    """MASK with zeros in these rows, and the indices of the other rows."""
    mask = MASK.clone()
    mask[list(rows)] = 0
    return mask, [row for row in range(len(MASK)) if row not in rows]


def here(caught: pytest.WarningsRecorder) -> str:
    """Text of the only warning, after a check that it points into this file."""
    assert [Path(one.filename) for one in caught] == [Path(__file__)]
    return str(caught[0].message)


def message_of(mask: Tensor) -> str:
    with pytest.warns(EmptyRowWarning) as caught:
        unpad(torch.zeros(mask.shape, dtype=torch.int64), mask)
    return here(caught)


def test_the_message_names_the_rows() -> None:
    mask = torch.ones(1000, 3)
    mask[2] = 0
    assert message_of(mask) == (
        "row 2 of attention_mask keeps no token: its hidden states are zeros"
    )
    mask[0] = 0
    several = "{} of attention_mask keep no token: their hidden states are zeros"
    assert message_of(mask) == several.format("rows 0 and 2")
    mask[[3, 998, 999]] = 0
    assert message_of(mask) == several.format("rows 0, 2, 3, 998 and 999")
    mask[500] = 0
    assert message_of(mask) == several.format("rows 0, 2, 3, 500, 998 and 1 more")
    mask[:] = 0
    assert message_of(mask.bool()) == several.format("rows 0, 1, 2, 3, 4 and 995 more")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", EMPTY)
@torch.inference_mode()
def test_hidden_states(
    rows: tuple[int, ...], backend: str, embedders: Callable[[str, str], Embedder]
) -> None:
    """Zeros in that row, the others bit-identical to a batch without it, and one warning."""
    model = embedders("nomic-v1.5", backend).model
    mask, others = without(rows)
    with pytest.warns(EmptyRowWarning) as caught:
        out = model(IDS, mask).last_hidden_state
    wanted = rf"row(s?) {rows[0]}( |, ).*of attention_mask keeps? no token"
    assert re.match(wanted, here(caught))
    assert torch.equal(out[list(rows)], torch.zeros(len(rows), 9, 64))
    assert torch.equal(out[others], model(IDS[others], MASK[others]).last_hidden_state)
    assert out[others].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_pooled_vectors(
    mode: str,
    variant: str,
    backend: str,
    embedders: Callable[[str, str], Embedder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Zeros after all modules too, although a Dense layer has a bias."""
    embedder = embedders(variant, backend)
    monkeypatch.setattr(embedder.pooling, "modes", (mode,))
    assert bool(embedder.pooling.steps) == (variant == "conan-v1")
    assert embedder.pooling.normalize == (variant == "bge-en")
    assert embedder.pooling.matryoshka_layer_norm == (variant == "nomic-v1.5")

    def pooled(ids: Tensor, mask: Tensor, finish: Finish) -> Tensor:
        return embedder.embedding_model(unpad(ids, mask)[0], finish)

    for rows in EMPTY:
        mask, others = without(rows)
        for finish in FINISHES:
            with pytest.warns(EmptyRowWarning) as caught:
                found = pooled(IDS, mask, finish)
            assert re.match(rf"row(s?) {rows[0]}( |, )", here(caught))
            alone = pooled(IDS[others], MASK[others], finish)
            assert found.shape == (5, alone.shape[1])
            assert torch.equal(found[list(rows)], torch.zeros(len(rows), found.shape[1]))
            assert torch.equal(found[others], alone)
            assert found.isfinite().all()
            assert found[others].any(dim=1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", [*VARIANTS, "nomic-v2-moe"])
@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_a_batch_of_empty_rows_only(
    mode: str,
    variant: str,
    backend: str,
    embedders: Callable[[str, str], Embedder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedder = embedders(variant, backend)
    monkeypatch.setattr(embedder.pooling, "modes", (mode,))
    width = embedder.get_sentence_embedding_dimension()
    for texts in ([[]], [[], [], []]):
        for finish in FINISHES:
            found = embedder.embedding_model(pack(texts), finish)
            dim = finish.matryoshka_dim or finish.truncate_dim or width
            assert torch.equal(found, torch.zeros(len(texts), dim))
    assert embedder.embedding_model(pack([]), Finish()).shape == (0, width)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", [*VARIANTS, "nomic-v2-moe"])
@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_a_text_of_length_zero(
    mode: str,
    variant: str,
    backend: str,
    embedders: Callable[[str, str], Embedder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tokenizer without special tokens gives no ids for an empty string."""
    embedder = embedders(variant, backend)
    monkeypatch.setattr(embedder.pooling, "modes", (mode,))
    empty, *texts = "", "the quick fox", "the dog"
    with_marks = embedder.encode([empty, *texts], prompt="")
    assert torch.from_numpy(with_marks).isfinite().all()
    assert with_marks[0].any()
    monkeypatch.setattr(embedder.tokenizer, "prefix", [])
    monkeypatch.setattr(embedder.tokenizer, "suffix", [])
    for keywords in ({}, {"matryoshka_dim": 24}, {"normalize_embeddings": True}):
        alone = embedder.encode(texts, prompt="", **keywords)
        found = embedder.encode([texts[0], empty, texts[1]], prompt="", **keywords)
        assert not found[1].any()
        assert (found[[0, 2]] == alone).all()
        assert not embedder.encode(empty, prompt="", **keywords).any()


@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe", "bge-en"])
@torch.inference_mode()
def test_no_tokens_at_all(variant: str, backend: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A batch with zero columns, and one whose tokens are all dropped."""
    folder = build_checkpoint(tmp_path, variant, num_hidden_layers=2)
    model = NomicBert.from_pretrained(folder, backend=backend, dtype=dtype)
    assert model(IDS[:, :0]).last_hidden_state.shape == (5, 0, 64)
    assert model(IDS[:0], MASK[:0]).last_hidden_state.shape == (0, 9, 64)
    with pytest.warns(EmptyRowWarning, match="rows 0, 1, 2, 3 and 4 of"):
        out = model(IDS, torch.zeros_like(MASK)).last_hidden_state
    assert torch.equal(out, torch.zeros(5, 9, 64, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: str, backend: str, embedders: Callable[[str, str], Embedder]) -> None:
    """L2 and layer_norm of a zero vector give no NaN gradient and change no other gradient."""
    embedder = embedders(variant, backend)
    mask, others = without((1,))
    weight = torch.linspace(-1, 1, 24)
    grads = []
    for ids, kept in ((IDS, mask), (IDS[others], MASK[others])):
        embedder.model.zero_grad()
        embedder.pooling.zero_grad()
        warned = pytest.warns(EmptyRowWarning) if len(kept) == 5 else pytest.MonkeyPatch.context()
        with warned:
            batch = unpad(ids, kept)[0]
        vectors = embedder.embedding_model(batch, Finish(matryoshka_dim=24, normalize=True))
        (vectors * weight).sum().backward()
        named = {
            **dict(embedder.model.named_parameters()),
            **dict(embedder.pooling.named_parameters()),
        }
        grads.append({name: parameter.grad for name, parameter in named.items()})
    with_row, alone = grads
    for name, grad in alone.items():
        assert with_row[name].isfinite().all(), name
        torch.testing.assert_close(with_row[name], grad, rtol=1e-5, atol=1e-5)
