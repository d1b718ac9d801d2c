"""Places in the plane: distances of few points, groups of more, and what is refused."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np
import pytest

from nomicbert.bulk import projection
from nomicbert.bulk.projection import choose_method, project
from nomicbert.errors import to_install


def two_groups(size: int, seed: int, width: int = 8) -> Any:
    """(2 size, width): vectors around two directions, of any length."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(np.eye(width)[:2], size, axis=0)
    noise = rng.normal(size=(2 * size, width)) * 0.05
    return (centres + noise) * rng.uniform(0.5, 9, size=(2 * size, 1))


def apart(places: Any, size: int) -> bool:
    """Whether every point is nearer to the middle of its own group."""
    middles = places.reshape(2, size, 2).mean(axis=1)
    distances = np.linalg.norm(places[:, None] - middles, axis=2)
    return bool((distances.argmin(axis=1) == np.repeat([0, 1], size)).all())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_up_to_three_points_keep_their_distances(count: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float16)
    places = project(vectors)
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    wanted = np.linalg.norm(unit[:, None] - unit, axis=2)
    found = np.linalg.norm(places[:, None] - places, axis=2)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(places.mean(axis=0), 0, atol=1e-6)


def test_groups_stay_apart_and_steps_are_counted(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[int, int]] = []
    vectors = two_groups(12, seed)
    before = vectors.copy()
    places = project(vectors, step=lambda done, total: steps.append((done, total)))
    np.testing.assert_array_equal(vectors, before)
    assert apart(places, 12)
    np.testing.assert_allclose(places.mean(axis=0), 0, atol=1e-3)
    assert steps[0] == (0, 1000)
    assert steps[-1] == (1000, 1000)
    assert len(steps) > 5
    assert steps == sorted(steps)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("width", [1, 2, 3])
def test_few_points_of_few_values(width: int, seed: int) -> None:
    """Fewer points than the usual perplexity, on a line or a circle."""
    vectors = np.random.default_rng(seed).normal(size=(4, width))
    vectors[0], vectors[1] = 1, -1  # for two different directions at least
    places = project(vectors)
    assert np.isfinite(places).all()
    assert np.linalg.norm(places[0] - places[1]) > 0


def test_equal_points_share_a_place(seed: int) -> None:
    direction = np.random.default_rng(seed).normal(size=(1, 6)).astype(np.float32)
    lengths = np.linspace(1, 3, 9, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(project(direction * lengths), np.zeros((9, 2), np.float32))


def test_a_zero_vector_is_a_point_like_others(seed: int) -> None:
    vectors = two_groups(4, seed)
    vectors[3] = 0
    assert np.isfinite(project(vectors)).all()


BROKEN = np.ones((5, 3))
BROKEN[[2, 4], 1] = np.nan, np.inf
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no points": (np.zeros((0, 3)), "auto", r"shape \(n, width\), n >= 1, not \(0, 3\)"),
    "one vector": (np.zeros(3), "auto", r"not \(3,\)"),
    "no width": (np.zeros((3, 0)), "auto", r"not \(3, 0\)"),
    "broken": (BROKEN, "auto", r"the vector of row 2 holds NaN or infinity \(2 such vectors\)"),
    "method": (np.ones((5, 3)), "umap", "method must be auto, tsne, pacmap, not 'umap'"),
    "few for pacmap": (np.ones((99, 3)), "pacmap", "PaCMAP needs 100 points, and there are 99"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    vectors, method, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        project(vectors, method)


def test_missing_packages_are_named_with_their_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"sklearn", "pacmap"}
    monkeypatch.setattr(projection, "_installed", lambda name: name in installed)
    methods = {count: choose_method(count) for count in (1, 3, 4, 10_000, 10_001)}
    assert methods == {1: "plane", 3: "plane", 4: "tsne", 10_000: "tsne", 10_001: "pacmap"}
    installed.remove("pacmap")
    assert choose_method(10_001, "tsne") == "tsne"
    with pytest.raises(
        ImportError, match=rf"10,001 points .*{re.escape(to_install('map-large'))}.* 10000"
    ):
        choose_method(10_001)
    installed.remove("sklearn")
    with pytest.raises(ImportError, match=re.escape(f"scikit-learn: {to_install('map')}")):
        choose_method(4)


@pytest.mark.skipif(
    importlib.util.find_spec("pacmap") is None, reason='needs pacmap: "nomicbert[map-large]"'
)
def test_pacmap(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[tuple[int, int]] = []
    vectors = two_groups(60, seed)
    places = project(vectors, "pacmap", lambda done, total: steps.append((done, total)))
    assert apart(places, 60)
    assert steps[0] == (0, 450)
    assert steps[-1] == (450, 450)
    assert len(steps) > 10
    assert capsys.readouterr().out == ""
