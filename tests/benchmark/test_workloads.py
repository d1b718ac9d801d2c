"""The benchmark of whole models: its texts, and how they are cut into batches."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nomicbert.benchmark import batching, workloads
from nomicbert.benchmark.batching import Batching, by_count, by_tokens, fastest, ways
from nomicbert.benchmark.plan import Checkpoint
from nomicbert.benchmark.workloads import Words
from tests.benchmark.measure_cases import CPU, case_of, checkpoints  # noqa: F401


@pytest.mark.parametrize("model", ["nomic-v1.5", "conan-v1"])
@pytest.mark.parametrize("name", ["fixed-16", "fixed-128", "passages", "queries", "mixture"])
def test_texts_match_their_ids(name: str, model: str, checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints[model]
    case = checkpoint.case(name, 2048, CPU)
    assert case is not None
    assert checkpoint.tokenizer.encode(case.texts, 8192) == (case.ids, [])
    assert case.tokens == 2048
    assert len(set(case.texts)) > len(case.texts) // 2
    again = checkpoint.case(name, 2048, CPU)
    other = checkpoint.case(name, 2048, CPU, seed=1)
    assert again == case
    assert other is not None
    assert other.texts != case.texts
    if not name.startswith("fixed"):
        assert other.lengths != case.lengths


def test_chinese_texts(checkpoints: dict[str, Checkpoint]) -> None:
    case = checkpoints["conan-v1"].case("fixed-16", 64, CPU)
    assert case is not None
    assert all(len(text) == 14 and "\u4e00" <= min(text) for text in case.texts)
    english = checkpoints["nomic-v1.5"].case("fixed-16", 64, CPU)
    assert english is not None
    assert all(len(text.split()) == 14 for text in english.texts)


def test_split_words_are_not_drawn(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, right = checkpoints["nomic-v1.5"].tokenizer, workloads._bodies
    assert "river" in Words.of(tokenizer).pieces

    def in_pieces(tokenizer: Any, texts: Any) -> list[list[int]]:
        bodies = right(tokenizer, texts)
        return [
            ids * (2 if text == "river" else 1) for text, ids in zip(texts, bodies, strict=True)
        ]

    monkeypatch.setattr(workloads, "_bodies", in_pieces)
    words = Words.of(tokenizer).pieces
    assert "river" not in words
    assert "red" in words


def test_lengths_of_each_kind() -> None:
    rng = np.random.default_rng(0)
    queries = workloads.lengths_of("queries", 40_000, rng, 8192)
    passages = workloads.lengths_of("passages", 200_000, rng, 8192)
    documents = workloads.lengths_of("documents", 200_000, rng, 8192)
    assert min(queries) == 3
    assert 14 < max(queries) <= 20
    assert np.mean(queries) == pytest.approx(8, rel=0.03)
    assert (min(passages), max(passages)) == (16, 256)
    assert np.mean(passages) == pytest.approx(70, rel=0.03)
    assert min(documents[:-1]) >= 512
    assert max(documents) <= 2048
    # documents are log-uniform: the mean is (b - a) / log(b / a)
    assert np.mean(documents) == pytest.approx(1536 / math.log(4), rel=0.08)
    on_gpu = workloads.lengths_of("documents", 400_000, rng, 8192, long_documents=True)
    assert 6000 < max(on_gpu) <= 8192
    assert workloads.lengths_of("fixed-128", 1000, rng, 8192) == [128] * 7
    assert workloads.lengths_of("fixed-8192", 1000, rng, 8192) == [8192]
    assert workloads.lengths_of("latency-32", 1000, rng, 8192) == [32]


def test_mixture_shares_are_in_tokens(checkpoints: dict[str, Checkpoint]) -> None:
    case = checkpoints["nomic-v1.5"].case("mixture", 10_000, CPU)
    assert case is not None
    assert case.kinds == {"queries": 1000, "passages": 6000, "documents": 3000}
    assert case.tokens == 10_000
    # shuffled, not ordered by kind
    long = [place for place, length in enumerate(case.lengths) if length > 256]
    assert long
    assert long != list(range(len(case.ids) - len(long), len(case.ids)))


def test_cases_beyond_the_length_limit(checkpoints: dict[str, Checkpoint]) -> None:
    bert = checkpoints["conan-v1"]
    assert bert.longest == 512
    assert bert.case("fixed-2048", 4096, CPU) is None
    assert bert.case("fixed-512", 512, CPU) is not None
    mixture = bert.case("mixture", 4096, CPU)
    assert mixture is not None
    assert max(mixture.lengths) <= 512
    with pytest.raises(ValueError, match="unknown case 'fixed-17'"):
        bert.case("fixed-17", 64, CPU)


def test_ways_to_cut_a_case() -> None:
    assert by_count([5, 9, 7], 2).parts == ((1, 2), (0,))
    assert by_tokens([5, 9, 7, 1], 18).parts == ((1, 2), (0, 3))
    assert [way.name for way in ways(case_of([16] * 4), "cpu")] == ["1", "4"]
    for device in ("cpu", "cuda"):
        assert [way.name for way in ways(case_of([16], "latency-16"), device)] == ["1"]
    # eight texts of 4096 would be 32768 padded tokens
    assert [way.name for way in ways(case_of([4096] * 9), "cpu")] == ["1", "4"]
    mixed = ways(case_of([2000, *[10] * 100]), "cpu")
    assert "4096 tokens" in [way.name for way in mixed]
    for way in mixed:
        assert sorted(itertools.chain(*way.parts)) == list(range(101))


def test_larger_batches_on_gpu() -> None:
    many = case_of([16] * 2048)
    few = ["1", "4", "8", "16", "32", "64"]
    # 64 texts of 16 are 1024 padded tokens, 256 are 4096
    assert [way.name for way in ways(many, "cpu")] == [*few, "4096 tokens"]
    assert [way.name for way in ways(many, "cuda")] == [
        *few, "128", "256", "512", "1024", "65536 tokens",
    ]  # fmt: skip
    long = [way.name for way in ways(case_of([512] * 1024), "cuda")]
    # 512 texts of 512 would be 262144 padded tokens
    assert long[-3:] == ["64", "128", "256"]
    mixed = [way.name for way in ways(case_of([4096, *[10] * 4096]), "cuda")]
    assert "16384 tokens" in mixed
    assert "65536 tokens" in mixed


def test_padding() -> None:
    ids, mask = batching.padded([[5, 6, 7], [8]], pad=2)
    assert ids.tolist() == [[5, 6, 7], [8, 2, 2]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_fastest_way() -> None:
    cost = {"1": [4.0], "4": [2.0], "8": [2.2], "16": [3.0], "32": [1.0]}
    tried: list[str] = []

    def seconds(way: Batching) -> float:
        tried.append(way.name)
        return cost[way.name][0]

    choices = [Batching(name, ()) for name in cost]
    assert fastest(choices, seconds).name == "4"
    # 16 is too slow, so the search ends there
    assert tried == ["1", "1", "4", "4", "8", "8", "16", "16"]
    # the faster of two passes counts
    turns = iter([0.5, 0.1, 0.4, 0.3])
    assert fastest(choices[:2], lambda way: next(turns)).name == "1"


def test_limits_below_the_shortest_text(checkpoints: dict[str, Checkpoint]) -> None:
    rng = np.random.default_rng(0)
    for kind, least, most in (("queries", 3, 2), ("passages", 16, 15), ("documents", 16, 15)):
        said = "passages" if kind == "documents" else kind
        with pytest.raises(ValueError, match=f"{said} have at least {least} tokens: .* {most} is"):
            workloads.lengths_of(kind, 100, rng, most)
        assert max(workloads.lengths_of(kind, 100, rng, least)) == least
    for name in workloads.NAMES:
        needed = workloads.shortest(name)
        short = replace(checkpoints["nomic-v1.5"], longest=needed - 1)
        assert short.case(name, 200, CPU) is None
        enough = replace(short, longest=needed).case(name, 200, CPU)
        assert enough is not None
        assert max(enough.lengths) == needed
