"""The engine's vectors have the bits of `Embedder.encode`, whatever shares their batch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.serve.engine.compute import NotFinite, Replica, TookTooLong, filler, isolate
from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.engine.jobs import Group, Job, Piece, TokenMeans, WindowMeans
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.models import Loaded
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels import linear_int8
from nomicbert_kernels.linear_torch import onednn_packs
from tests.support.checkpoints import build_checkpoint
from tests.support.engines import load_models, rows_of, run, same_rows, want
from tests.support.module_folders import build_modules
from tests.support.sameness import HAS_ONEDNN
from tests.support.vocabularies import SENTENCES, WORDS

pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="without oneDNN bits depend on the batch")

TEXTS = [*SENTENCES, "", "deep learning of the river " * 9, "fox", " ".join(WORDS)]
DENSE = {"out_features": 24, "bias": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("checkpoints")
    found = {
        name: build_checkpoint(where / name, variant)
        for name, variant in (
            ("nomic", "nomic-v1.5"),
            ("minilm", "minilm"),
            ("cls", "bge-en"),
            ("dense", "conan-v1"),
            ("moe", "nomic-v2-moe"),
        )
    }
    build_modules(
        where / "left out", [("Dense", DENSE), ("LayerNorm", {})], "e5",
        pooling_mode="mean", include_prompt=False,
    )  # fmt: skip
    build_modules(
        where / "last", [("Normalize", {})], "e5", pooling_mode="lasttoken", include_prompt=False
    )
    build_modules(where / "two", [("Dense", DENSE)], "e5", pooling_mode=["mean", "max"])
    return found | {name: where / name for name in ("left out", "last", "two")}


NAMES = ["nomic", "minilm", "cls", "dense", "moe", "left out", "last", "two"]


def finishes(width: int) -> list[tuple[Finish, dict[str, Any]]]:
    """Steps after pooling, and the keywords of `encode` for them."""
    return [
        (Finish(), {}),
        (Finish(normalize=True), {"normalize_embeddings": True}),
        (Finish(matryoshka_dim=width // 3), {"matryoshka_dim": width // 3}),
        (Finish(truncate_dim=width // 2), {"truncate_dim": width // 2}),
        (
            Finish(truncate_dim=width // 2, normalize=True),
            {"truncate_dim": width // 2, "normalize_embeddings": True},
        ),
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_mixed_requests_have_the_bits_of_encode(name: str, folders: dict[str, Path]) -> None:
    loaded = load_models(folders[name])
    check_mixed(loaded, Embedder(folders[name]))


@pytest.mark.parametrize(
    "settings",
    [{"backend": "int8"}, {"dtype": "bfloat16"}, {"devices": ("cpu", "cpu")}],
    ids=lambda given: next(iter(given)),
)
@pytest.mark.parametrize("name", ["nomic", "minilm"])
@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_other_backends_dtypes_and_devices(
    name: str, settings: dict[str, Any], folders: dict[str, Path]
) -> None:
    if settings.get("dtype") == "bfloat16" and not onednn_packs(torch.bfloat16):
        pytest.skip("bf16 bits depend on the batch here")
    if settings.get("backend") == "int8" and (reason := linear_int8.why_not()):
        pytest.skip(reason)
    loaded = load_models(folders[name], **settings)
    keywords = {key: value for key, value in settings.items() if key != "devices"}
    check_mixed(loaded, Embedder(folders[name], **keywords))


def check_mixed(loaded: Loaded, embedder: Embedder) -> None:
    """Requests of all kinds at once: each has the bits that `encode` gives for it alone."""
    (model,) = loaded.models
    prompt = "what is the fox: "
    wishes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for finish, keywords in finishes(model.width):
        for chosen in ("", prompt):
            wishes.append(({"finish": finish, "prompt": chosen}, keywords | {"prompt": chosen}))
    wishes.append(({"max_length": 9}, {"max_length": 9, "prompt": ""}))
    wanted = [embedder.encode(TEXTS, **keywords) for _, keywords in wishes]

    async def scenario(engine: Engine) -> list[list[torch.Tensor]]:
        jobs = [rows_of(engine, want(model, TEXTS, **wish)) for wish, _ in wishes]
        return await asyncio.gather(*jobs)

    for found, truth, wish in zip(run(loaded, scenario), wanted, wishes, strict=True):
        assert same_rows(found, truth), wish


@pytest.mark.parametrize("name", ["nomic", "dense", "left out"])
@pytest.mark.parametrize("policy", ["mean", "chunk"])
def test_windows_have_the_bits_of_encode(name: str, policy: str, folders: dict[str, Path]) -> None:
    loaded, embedder = load_models(folders[name]), Embedder(folders[name])
    (model,) = loaded.models
    wishes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"finish": finish, "prompt": prompt}, keywords | {"prompt": prompt})
        for finish, keywords in finishes(model.width)
        for prompt in ("", "query: ")
    ]
    for texts in (TEXTS, ["fox", "the dog"]):  # several windows; one for each text

        async def scenario(engine: Engine, texts: list[str] = texts) -> list[list[torch.Tensor]]:
            jobs = [
                rows_of(engine, want(model, texts, on_long=policy, max_length=20, **wish))
                for wish, _ in wishes
            ]
            return await asyncio.gather(*jobs)

        for found, (wish, keywords) in zip(run(loaded, scenario), wishes, strict=True):
            truth = embedder.encode(texts, truncate=policy, max_length=20, **keywords)
            assert same_rows(found, truth), wish


@pytest.mark.parametrize("name", ["nomic", "minilm", "left out"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_states(name: str, dtype: str, folders: dict[str, Path]) -> None:
    if not onednn_packs(getattr(torch, dtype)):
        pytest.skip("bits depend on the batch here")
    loaded = load_models(folders[name], dtype=dtype)
    (model,) = loaded.models
    embedder = Embedder(folders[name], dtype=dtype)
    for prompt in ("", "query: "):

        async def scenario(engine: Engine, prompt: str = prompt) -> list[list[torch.Tensor]]:
            # vectors meanwhile: they do not share a batch
            jobs = [
                want(model, TEXTS, prompt=prompt, hidden=True),
                want(model, TEXTS, prompt=prompt),
            ]
            return await asyncio.gather(*(rows_of(engine, one) for one in jobs))

        states, _ = run(loaded, scenario)
        truth = embedder.encode(TEXTS, prompt=prompt, output_value="token_embeddings")
        assert same_rows(states, [torch.as_tensor(rows).float() for rows in truth])
        assert all(rows.untyped_storage().nbytes() == rows.nbytes for rows in states)


PLAIN, WHOLE = Group(0), Finish()


def piece(ids: list[int], finish: Finish = WHOLE, group: Group = PLAIN) -> Piece:
    return Piece(Job(group, [ids], finish), 0)


def test_equal_texts_are_computed_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = load_models(folders["nomic"]).replicas[0][0]
    seen: list[list[list[int]]] = []
    original = Replica._vectors

    def counted(self: Replica, texts: list[list[int]], *rest: Any) -> list[torch.Tensor]:
        seen.append(texts)
        return original(self, texts, *rest)

    monkeypatch.setattr(Replica, "_vectors", counted)
    a, b = [101, 5, 6, 102], [101, 7, 102]
    rows = replica.rows([piece(a), piece([*a]), piece(a, Finish(8)), piece(b), piece(b)])
    assert seen == [[a, a, b]]
    assert [len(row) for row in rows] == [64, 64, 8, 64, 64]
    assert same_rows([rows[1], rows[4]], [rows[0], rows[3]])
    assert not torch.equal(rows[0], rows[3])


@pytest.mark.parametrize("name", NAMES)
def test_texts_without_tokens(name: str, folders: dict[str, Path]) -> None:
    replica = load_models(folders[name]).replicas[0][0]
    model = replica.model
    width = model.pooling.embedding_dimension
    ids = [101, 5, 6, 7, 102]
    for group in (Group(0), Group(0, skipped=2)):
        for kinds in ([Finish()], [Finish(), Finish(8), Finish(truncate_dim=5), None]):
            batch = [
                Piece(Job(group, [tokens], finish), 0) for tokens in (ids, []) for finish in kinds
            ]
            rows = replica.rows(batch)
            full, empty = rows[: len(kinds)], rows[len(kinds) :]
            assert [row.shape for row in full] == [row.shape for row in empty]
            assert not any(row.any() for row in empty)
            assert all(row.any() for row in full)
            assert same_rows(full, replica.rows(batch[: len(kinds)]))  # alone
            assert same_rows(empty, replica.rows(batch[len(kinds) :]))
    with torch.inference_mode():
        truth = model.encode_ids([ids, []])
    assert same_rows(replica.rows([piece(ids), piece([])]), truth)
    assert truth.shape[1] == width


def test_hidden_states_of_texts_without_tokens(folders: dict[str, Path]) -> None:
    replica = load_models(folders["nomic"]).replicas[0][0]
    group = Group(0, hidden=True)
    states = [piece([101, 5, 102], group=group), piece([], group=group)]
    assert [rows.shape for rows in replica.rows(states)] == [(3, 64), (0, 64)]
    assert [rows.shape for rows in replica.rows(states[1:])] == [(0, 64)]


@pytest.mark.parametrize("name", ["nomic", "dense", "left out"])
def test_the_mean_over_windows_without_tokens(name: str, folders: dict[str, Path]) -> None:
    """A tokenizer without special tokens gives such; `Texts` returns zeros for them."""
    model = load_models(folders[name]).replicas[0][0].model
    width = model.encoder.config.hidden_size
    rows = list(torch.randn(4, width, generator=torch.Generator().manual_seed(1)))
    rows[2].zero_()
    join = TokenMeans((2, 1, 1), (5, 4, 0, 3), 1, Finish())
    with torch.inference_mode():
        found = join(model, rows)
        pooled = torch.stack([rows[0] * (4 / 7) + rows[1] * (3 / 7), rows[3]])
        truth = model.finish(pooled, Finish())
    assert not found[1].any()
    torch.testing.assert_close(torch.stack([found[0], found[2]]), truth)


def test_the_mean_of_windows(folders: dict[str, Path]) -> None:
    model = load_models(folders["nomic"]).replicas[0][0].model
    rows = [torch.tensor(row) for row in ([1.0, 0.0], [0.0, 1.0], [0.6, 0.8])]
    first, second = WindowMeans((2, 1))(model, rows)
    torch.testing.assert_close(first, torch.full((2,), 0.5**0.5))
    assert torch.equal(second, rows[2])


def batch_of(count: int) -> list[Piece]:
    return [piece([101, number, 102][: 3 if number % 2 else 2]) for number in range(count)]


def value(one: Piece) -> torch.Tensor:
    return torch.tensor([float(one.ids[1])])


@pytest.mark.parametrize("at_fault", [[0], [12], [3, 4, 9], range(13)], ids=str)
@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, torch.OutOfMemoryError, "nan", "inf"])
def test_only_the_texts_at_fault_fail(at_fault: list[int], kind: Any) -> None:
    batch = batch_of(13)
    for number, one in enumerate(batch):
        one.ids[1] = number
    sizes: list[int] = []

    def compute(part: Any) -> list[torch.Tensor]:
        sizes.append(len(part))
        bad = [one.ids[1] in at_fault for one in part]
        if not isinstance(kind, str) and any(bad):
            raise kind(f"planted in {len(part)}")
        return [
            value(one) * float(kind) if is_bad else value(one)
            for one, is_bad in zip(part, bad, strict=True)
        ]

    if kind in ("nan", "inf"):
        batch[0].ids[1] = 100  # 0 * inf
        at_fault = [100 if number == 0 else number for number in at_fault]
    found = isolate(compute, batch)
    for one, row in zip(batch, found, strict=True):
        if one.ids[1] in at_fault:
            wanted = NotFinite if isinstance(kind, str) else kind
            assert type(row) is wanted
            assert isinstance(kind, str) or str(row) == "planted in 1"
        else:
            assert isinstance(row, torch.Tensor)
            assert torch.equal(row, value(one))
    if isinstance(kind, str):
        assert sizes == [13]  # nothing is computed again
    elif len(at_fault) == 1:
        assert len(sizes) <= 9


def test_a_batch_that_only_fits_in_halves() -> None:
    batch, sizes = batch_of(16), []

    def compute(part: Any) -> list[torch.Tensor]:
        sizes.append(len(part))
        if len(part) > 4:
            raise torch.OutOfMemoryError("planted")
        return [value(one) for one in part]

    assert same_rows(isolate(compute, batch), [value(one) for one in batch])
    assert max(sizes) == 16
    assert sum(size <= 4 for size in sizes) <= 8


def test_a_batch_that_takes_too_long_is_computed_text_by_text() -> None:
    batch, sizes = batch_of(9), []
    batch[5].ids[1] = 100

    def compute(part: Any) -> list[torch.Tensor]:
        sizes.append(len(part))
        if any(one.ids[1] == 100 for one in part):
            raise TookTooLong("planted")
        return [value(one) for one in part]

    found = isolate(compute, batch)
    assert sizes == [9, *[1] * 9]  # in halves, each that has the text would take as long again
    assert type(found.pop(5)) is TookTooLong
    del batch[5]
    assert same_rows(found, [value(one) for one in batch])


def test_a_problem_of_the_server_is_not_of_a_text() -> None:
    calls = []

    def compute(part: Any) -> list[torch.Tensor]:
        calls.append(len(part))
        raise Problem(Reason.LOADING, "planted")

    found = isolate(compute, batch_of(5))
    assert calls == [5]
    assert [str(error) for error in found] == ["planted"] * 5


def test_what_is_not_an_error_of_the_batch_is_not_caught() -> None:
    def compute(_: Any) -> list[torch.Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        isolate(compute, batch_of(2))


def test_rows_are_fp32_on_the_host(folders: dict[str, Path]) -> None:
    loaded = load_models(folders["nomic"], dtype="bfloat16")
    rows = loaded.replicas[0][0].rows([piece([101, 5, 102]), piece([101, 6, 102], Finish(8))])
    assert {row.dtype for row in rows} == {torch.float32}
    assert np.isfinite(rows[0].numpy()).all()


def test_few_sizes_of_batches() -> None:
    grown = {tokens: sum(map(len, filler(tokens))) for tokens in range(5000)}
    assert all(
        more <= tokens * (0.055 if tokens < 256 else 0.032) for tokens, more in grown.items()
    )
    assert len({tokens + grown[tokens] for tokens in range(1, 513)}) == 112
    assert [grown[tokens] for tokens in (0, 1, 31, 512, 1024)] == [0] * 5
