"""The nearest vectors: equal to brute force, whatever the blocks; copies; what is refused."""

from __future__ import annotations

import datetime
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomicbert.bulk.job import fingerprints, run
from nomicbert.bulk.search import bits as bits_module
from nomicbert.bulk.search import mapped as mapped_module
from nomicbert.bulk.search import scan
from nomicbert.bulk.search.bits import bits_of, differing
from nomicbert.bulk.search.mapped import open_mapped, unit
from nomicbert.bulk.search_vectors import search_vectors
from nomicbert.bulk.stored import open_vectors
from tests.bulk.job.standin import embed


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def store(vectors: Any, name: str = "v.parquet") -> str:
    values = np.ascontiguousarray(vectors, np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    pq.write_table(pa.table({"embedding": column}), name, row_group_size=7)
    return name


def brute_force(vectors: Any, questions: Any, k: int) -> tuple[Any, Any]:
    """Cosines in float64, rounded to float32; equal ones in the order of the rows."""
    scores = []
    for question in unit(np.float32(questions)).astype(np.float64):
        scores.append([np.float32((row * question).sum()) for row in np.float64(unit(vectors))])
    found = np.array(scores)
    rows = np.argsort(-found, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, rows, 1), rows


# few values, so that many vectors are equal; among them zeros
VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.0, 0.5, 3.0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_exact_search_is_brute_force(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([1, 3, 65]))
    row = st.lists(VALUES, min_size=width, max_size=width)
    vectors = np.float32(data.draw(st.lists(row, min_size=1, max_size=40)))
    questions = np.float32(data.draw(st.lists(row, min_size=1, max_size=4)))
    k = data.draw(st.integers(1, 45))
    block = data.draw(st.sampled_from([1, 2, 7, 64]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "BLOCK", block)
        patch.setattr(scan, "QUESTIONS", 3)
        patch.setattr(scan, "PIECE", 2)
        found = search_vectors(store(vectors), questions, k)
        # with all rows as candidates, bits change nothing
        by_bits = search_vectors("v.parquet", questions, k, bits=True, oversampling=len(vectors))
    scores, rows = brute_force(vectors, questions, k)
    for one in (found, by_bits):
        assert one.scores.dtype == np.float32
        assert one.rows.dtype == np.int64
        np.testing.assert_array_equal(one.rows, rows)
        np.testing.assert_allclose(one.scores, scores, rtol=0, atol=1e-7)


def test_near_copies_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that differ less than the rounding of a float32 matmul."""
    monkeypatch.setattr(scan, "BLOCK", 100)
    draw = np.random.default_rng(0)
    base = draw.standard_normal(384)
    vectors = np.float32(base + draw.standard_normal((3000, 384)) * 1e-6)
    questions = np.float32([base, draw.standard_normal(384)])
    found = search_vectors(store(vectors), questions, 50)
    scores, rows = brute_force(vectors, questions, 50)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-7)


def test_one_question_of_one_row() -> None:
    found = search_vectors(store([[3.0, 4.0]]), np.float32([1, 0]))
    assert found.rows.tolist() == [0]
    assert found.scores.tolist() == [np.float32(0.6)]


@pytest.mark.parametrize("width", [1, 63, 64, 65, 384])
@pytest.mark.parametrize("table", [False, True], ids=["count", "table"])
def test_differing_signs(width: int, table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if table:  # as with NumPy 1.26
        monkeypatch.setattr(bits_module.np, "bitwise_count", None, raising=False)
    draw = np.random.default_rng(width)
    vectors = draw.standard_normal((50, width)).astype(np.float32)
    vectors[3] = 0
    found = differing(bits_of(vectors), bits_of(vectors[7:8])[:, 0])
    assert found.tolist() == ((vectors > 0) != (vectors[7] > 0)).sum(1).tolist()


def test_bits_find_what_is_near() -> None:
    draw = np.random.default_rng(1)
    vectors = draw.standard_normal((2000, 128)).astype(np.float32)
    questions = vectors[:20] + draw.standard_normal((20, 128)).astype(np.float32) * 0.7
    name = store(vectors)
    exact, few = search_vectors(name, questions, 5), search_vectors(name, questions, 5, bits=True)
    assert few.rows[:, 0].tolist() == exact.rows[:, 0].tolist() == list(range(20))
    np.testing.assert_array_equal(few.scores[:, 0], exact.scores[:, 0])
    bare = search_vectors(name, questions, 5, bits=True, oversampling=1)

    def recall(found: Any) -> float:
        pairs = zip(found.rows, exact.rows, strict=True)
        return float(np.mean([len(set(one) & set(other)) / 5 for one, other in pairs]))

    assert recall(bare) < recall(few)


def test_a_copy_is_made_once_and_follows_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.txt").write_text("".join(f"line {n}\n" for n in range(20)))
    embed("a.txt", "v")
    question = open_vectors("v").vectors([4])
    assert search_vectors("v", question, 1).rows.tolist() == [[4]]
    (copy,) = Path("v/_search").iterdir()
    made: list[str] = []
    make = mapped_module._make
    monkeypatch.setattr(mapped_module, "_make", lambda *args: (made.append(args[2]), make(*args)))
    assert search_vectors("v/", question[0], 1).rows.tolist() == [4]
    assert made == []
    Path("a.txt").write_text("".join(f"line {n}\n" for n in range(19, -1, -1)))
    embed("a.txt", "v", restart=True)
    assert search_vectors("v", question, 1).rows.tolist() == [[15]]
    assert len(made) == 1
    (other,) = Path("v/_search").iterdir()
    assert other != copy
    assert embed("a.txt", "v").kept == 20  # the job does not mind the copy


def test_a_copy_follows_a_change_that_the_fingerprint_does_not_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fingerprints, "END", 8)
    Path("a.txt").write_text("begin of it\nmiddle\nend of it\n")
    embed("a.txt", "v")
    question = open_vectors("v").vectors([1])
    assert search_vectors("v", question, 1).scores[0, 0] == pytest.approx(1)
    Path("a.txt").write_text("begin of it\nMIDDLE\nend of it\n")

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) + datetime.timedelta(seconds=2)

    monkeypatch.setattr(run, "datetime", Later)
    embed("a.txt", "v", restart=True)
    assert search_vectors("v", question, 1).scores[0, 0] < 0.999


def test_others_may_read_a_copy() -> None:
    Path("a.txt").write_text("one\ntwo\n")
    embed("a.txt", "v")
    before = os.umask(0o022)
    try:
        search_vectors("v", open_vectors("v").vectors([1]), 1)
    finally:
        os.umask(before)
    (copy,) = Path("v/_search").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (copy, copy / "bits.npy")] == [0o755, 0o644]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.txt").write_text("one\ntwo\n")
    embed("a.txt", "v")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    question = open_vectors("v").vectors([1])
    assert search_vectors("v", question, 1).rows.tolist() == [[1]]
    assert not Path("v/_search").exists()
    assert len(list((tmp_path / "cache/nomicbert/search").glob("*/*/bits.npy"))) == 1


def test_several_threads_make_one_copy() -> None:
    draw = np.random.default_rng(2)
    vectors = draw.standard_normal((500, 16)).astype(np.float32)
    name, found = store(vectors), []
    stored = open_vectors(name)

    def search() -> None:
        found.append(search_vectors(stored, vectors[:3], 1).rows[:, 0].tolist())

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[0, 1, 2]] * 4
    assert len(list(Path("cache/nomicbert/search").glob("*/*"))) == 1


def test_an_interrupted_copy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    name = store(np.eye(4))
    stored = open_vectors(name)
    with monkeypatch.context() as patch:
        patch.setattr(mapped_module, "bits_of", lambda block: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_mapped(stored)
    assert list(Path("cache/nomicbert/search").glob("*/*")) == []
    shutil.rmtree("cache")
    assert search_vectors(stored, np.eye(4)[2], 1).rows.tolist() == [2]


def test_copies_of_killed_processes_are_removed() -> None:
    name = store(np.eye(4))
    folder = mapped_module._in_cache(open_vectors(name))
    for age, kept in ((0, "new"), (2e5, "old")):
        copy = folder / f"{mapped_module.TEMPORARY}{kept}"
        copy.mkdir(parents=True)
        os.utime(copy, (time.time() - age,) * 2)
    search_vectors(name, np.eye(4)[2], 1)
    assert [path.name for path in folder.glob(".*")] == [f"{mapped_module.TEMPORARY}new"]


def test_what_is_refused() -> None:
    name = store(np.eye(4))
    question = np.eye(4, dtype=np.float32)
    for arguments, options, problem in (
        ((question, 0), {}, "k must be at least 1, not 0"),
        ((question, 3), {"oversampling": 0}, "oversampling must be at least 1, not 0"),
        (
            (question[:, :3],),
            {},
            r"of shape \(q, 4\), the width of v.parquet, not float32 \(4, 3\)",
        ),
        ((question[None],), {}, "questions must be floats of shape"),
        ((np.eye(4, dtype=int),), {}, "not int64"),
        ((question * np.nan,), {}, "questions hold NaN"),
    ):
        with pytest.raises(ValueError, match=problem):
            search_vectors(name, *arguments, **options)  # type: ignore[arg-type]
    broken = np.eye(4)
    broken[2] = np.inf
    with pytest.raises(ValueError, match=r"the first that of v.parquet, row 3"):
        search_vectors(store(broken), question)
