"""Vectors -> places in the plane where neighbours stay neighbours.

Where in the flow: `write_map` draws these places. Only cosines matter: t-SNE takes 1 - cos as the
distance, which keeps a few more neighbours than |u - v|^2 = 2 (1 - cos) of unit vectors, which the
others take. t-SNE keeps most neighbours, in a time that grows fast; PaCMAP is for more points.
Neither keeps distances: how far apart two groups lie on a map means little.

Source: van der Maaten and Hinton 2008, "Visualizing data using t-SNE", JMLR 9, with scikit-learn's
tree (arXiv:1301.3342); Wang et al. 2021, arXiv:2012.04456 (PaCMAP).
"""

import importlib.util
import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from nomicbert.errors import to_install

Floats: TypeAlias = npt.NDArray[np.float32]
Method: TypeAlias = Literal["auto", "tsne", "pacmap"]
# What has been done, of how much.
Step: TypeAlias = Callable[[int, int], None]

METHODS: tuple[Method, ...] = ("auto", "tsne", "pacmap")
# "auto" takes PaCMAP for more points.
MOST_TSNE = 10_000
# So few points fit into a plane as they are.
MOST_PLANE = 3
# PaCMAP takes ten neighbours per point, and as many pairs again from elsewhere.
LEAST_PACMAP = 100
PERPLEXITY = 30.0
TSNE_STEPS, PACMAP_STEPS = 1000, 450
SEED = 0


def project(vectors: npt.NDArray[Any], method: Method = "auto", step: Step | None = None) -> Floats:
    """Place vectors in the plane, with similar ones close to each other.

    Up to three vectors are placed at their true distances. If all vectors are equal, they share one
    place. The start is fixed: the same vectors look alike in every call, though several threads may
    add up in another order and change details.

    Args:
        vectors: (n, width), floats or integers, n >= 1. Their lengths do not matter.
        method: "tsne", "pacmap", or "auto": t-SNE up to 10,000 points, PaCMAP for more.
        step: called with the iterations done and their total, a few dozen times. It reads what the
            libraries print, so standard output of this process is redirected meanwhile.

    Returns: (n, 2) fp32, centred on 0.
    Raises: ValueError: no vectors, another shape, NaN or infinity, or too few points for "pacmap".
        ImportError: the package of the method is missing; the message names the extra.
    """
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"a map needs vectors of shape (n, width), n >= 1, not {vectors.shape}")
    points = vectors.astype(np.float32)
    chosen = choose_method(len(points), method)
    refuse_not_finite(points)
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    plane = _principal(points)
    if chosen == "plane":
        return plane
    spread = plane.std(axis=0)
    if spread[0] < 1e-6:  # of unit vectors: all are equal but for rounding
        return np.zeros_like(plane)
    placed = _tsne(points, plane, step) if chosen == "tsne" else _pacmap(points, step)
    return np.asarray(placed - placed.mean(axis=0), np.float32)


def choose_method(count: int, method: Method = "auto") -> Literal["plane", "tsne", "pacmap"]:
    """What `project` does with so many points.

    Raises: ValueError: an unknown method, or too few points for it. ImportError: its package is
        missing.
    """
    if method not in METHODS:
        raise ValueError(f"method must be {', '.join(METHODS)}, not {method!r}")
    if method == "pacmap" and count < LEAST_PACMAP:
        raise ValueError(
            f"PaCMAP needs {LEAST_PACMAP} points, and there are {count:,}: t-SNE is for few points "
            "(method tsne)"
        )
    if count <= MOST_PLANE:
        return "plane"
    large = count > MOST_TSNE if method == "auto" else method == "pacmap"
    if large and not _installed("pacmap"):
        raise ImportError(
            f"a map of {count:,} points needs PaCMAP: {to_install('map-large')}; or draw "
            f"a sample of {MOST_TSNE} (--sample {MOST_TSNE}), or take t-SNE and be patient "
            "(--method tsne)"
        )
    if not _installed("sklearn"):
        raise ImportError(f"a map needs scikit-learn: {to_install('map')}")
    return "pacmap" if large else "tsne"


def refuse_not_finite(vectors: npt.NDArray[Any]) -> None:
    """Raise a ValueError that names the first of (n, width) vectors with NaN or infinity."""
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        more = f" ({len(broken):,} such vectors)" if len(broken) > 1 else ""
        raise ValueError(
            f"the vector of row {broken[0]} holds NaN or infinity{more}: embed it again"
        )


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _principal(points: Floats) -> Floats:
    """(n, 2): coordinates along the two directions of the largest spread, centred."""
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    # of few points, the small matrix is that of their inner products
    _, directions = np.linalg.eigh(centred.T @ centred)
    axes = directions[:, ::-1][:, :2]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(axes.shape[1])])  # else a sign may differ
    plane = np.zeros((len(points), 2), np.float32)
    plane[:, : axes.shape[1]] = centred @ axes
    return plane


def _tsne(points: Floats, plane: Floats, step: Step | None) -> Floats:
    from sklearn.manifold import TSNE

    count = len(points)
    model = TSNE(
        perplexity=min(PERPLEXITY, (count - 1) / 3),
        # scikit-learn's own start has NaN where all points lie on a line
        init=plane / plane[:, 0].std() * 1e-4,
        metric="cosine",
        max_iter=TSNE_STEPS,
        random_state=SEED,
        verbose=2 if step else 0,
        n_jobs=-1,
    )
    with _counting(step, TSNE_STEPS):
        return np.asarray(model.fit_transform(points), np.float32)


def _pacmap(points: Floats, step: Step | None) -> Floats:
    logging.getLogger("pacmap").setLevel(logging.ERROR)  # it warns of a fixed random_state
    from pacmap import PaCMAP

    model = PaCMAP(random_state=SEED, num_iters=PACMAP_STEPS, verbose=step is not None)
    with _counting(step, PACMAP_STEPS):
        return np.asarray(model.fit_transform(points, init="pca"), np.float32)


@contextmanager
def _counting(step: Step | None, total: int) -> Iterator[None]:
    """Report the iterations that a library prints, as "Iteration 50" or "Iteration:  50"."""
    if step is None:
        yield
        return
    step(0, total)
    with redirect_stdout(_Iterations(step, total)):
        yield
    step(total, total)


class _Iterations(io.TextIOBase):
    """A stream that looks for iterations in what is written to it."""

    def __init__(self, step: Step, total: int) -> None:
        self._step, self._total, self._done = step, total, 0

    def write(self, text: str) -> int:
        found = re.search(r"Iteration:?\s+(\d+)", text)
        if found and self._done < int(found[1]) <= self._total:
            self._done = int(found[1])
            self._step(self._done, self._total)
        return len(text)
