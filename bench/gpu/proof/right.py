"""Whether whole models and backend "fp8" compute what they should, on this device."""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench.gpu import gemm, ops
from bench.gpu.forms import IN_FP8, ROUNDED
from bench.gpu.place import Place
from bench.gpu.proof.cases import case, matched, within
from bench.gpu.proof.whole import AGAIN, MODEL, models_of, of_ours, races
from bench.gpu.rivals import FP8, Budgets
from bench.gpu.runner.child import Case, Facts
from bench.harness import WrongValues
from nomicbert.embedder import Embedder
from nomicbert.runtime import graphs
from nomicbert.throughput import measure
from nomicbert.throughput.peers import Setting
from nomicbert.throughput.torch_peers import NAIVE_BATCH, Native
from nomicbert.throughput.workloads import Case as Texts
from nomicbert.verify.bounds import EMBEDDING
from nomicbert_kernels import select_ops, values
from nomicbert_kernels.backend import FP8_REFERENCE

# Tokens of what is compared; and passes that have to give the same bits.
TOKENS, DRY_TOKENS = 16384, 200
PASSES, DRY_PASSES = 20, 2
THREADS = 4
# Of a result in fp8 to its specification's: the size of the error over that of the result. What is
# itself rounded to e4m3 may fall to the other side of a step, an eighth apart, here and there.
FP8_ERROR, FP8_STEPS = 0.02, 0.04
FP8_TOKENS, FP8_DRY_TOKENS = (17, 512, 16896), (33,)


def cases(stage: str, options: Facts) -> Sequence[Case]:
    """The whole model against transformers, and against itself."""
    place = Place.here(options["dry"])
    suite = Suite(place, options)
    checks: dict[str, tuple[Callable[[], Facts], float]] = {
        "fp32 against transformers": (suite.full, 9.0),
        f"{place.dtype_name} against transformers": (suite.half, 8.0),
        "the same bits again": (suite.repeats, 4.0),
        "graphs against launches": (suite.graphs, 5.0),
        "threads": (suite.threads, 5.0),
    }
    found = [case(place, name, work, seconds) for name, (work, seconds) in checks.items()]
    return matched(found, options)


class Suite:
    """Checks of one model that share what they have loaded."""

    def __init__(self, place: Place, options: Facts) -> None:
        """Nothing is loaded yet."""
        self.place = place
        self.models = models_of(place, options, of_ours(place, ()))

    @functools.cached_property
    def texts(self) -> Texts:
        """Of mixed lengths."""
        tokens = DRY_TOKENS if self.place.dry else TOKENS
        found = self.models.checkpoint(MODEL).case("passages", tokens, self.place.device)
        assert found is not None
        return found

    @functools.cached_property
    def setting(self) -> Setting:
        """What peers are loaded with."""
        return self.models.group("models", MODEL).setting

    @functools.lru_cache  # noqa: B019, one suite a process
    def vectors_of_transformers(self, dtype: str) -> np.ndarray:
        """In a dtype, in small batches."""
        runner = Native(self.setting, dtype, NAIVE_BATCH, compiled=False)
        return runner.vectors(self.texts, runner.ways(self.texts)[0])

    @functools.lru_cache  # noqa: B019
    def embedder(self, dtype: str) -> Embedder:
        """Ours in a dtype."""
        backend: Any = self.place.backend
        folder = self.models.checkpoint(MODEL).folder
        return Embedder.from_pretrained(
            folder, device=self.place.device, dtype=dtype, backend=backend
        )

    def vectors(self, dtype: str) -> np.ndarray:
        """Ours, in two batches and by way of graphs where they serve."""
        runner = Budgets(self.embedder(dtype))
        return runner.vectors(self.texts, runner.ways(self.texts)[0])

    def full(self) -> Facts:
        """Unit vectors in fp32, number by number."""
        got, wanted = unit(self.vectors("float32")), unit(self.vectors_of_transformers("float32"))
        return within(float(np.abs(got - wanted).max()), EMBEDDING)

    def half(self) -> Facts:
        """One minus the cosine, of the worst text: twice what transformers' own rounding costs."""
        dtype = self.place.dtype_name
        truth = unit(self.vectors_of_transformers("float32"))
        theirs = farthest(unit(self.vectors_of_transformers(dtype)), truth)
        found = farthest(unit(self.vectors(dtype)), truth)
        return within(found, 2 * theirs + 1e-5) | {"transformers": theirs}

    def repeats(self) -> Facts:
        """Values with other bits than in the first pass."""
        dtype = self.place.dtype_name
        first, passes = self.vectors(dtype), DRY_PASSES if self.place.dry else PASSES
        other = sum(int((self.vectors(dtype) != first).sum()) for _ in range(passes - 1))
        return within(float(other), 0.0) | {"passes": passes}

    def graphs(self) -> Facts:
        """Few texts and many, recorded and launched one by one: one minus the cosine."""
        embedder, worst = self.embedder(self.place.dtype_name), 0.0
        keywords: dict[str, Any] = {"prompt": "", "normalize_embeddings": True}
        for count in (1, 3, 20, len(self.texts.texts)):
            texts = self.texts.texts[:count]
            recorded = embedder.encode(texts, **keywords)
            with mock.patch.dict(os.environ, {graphs.SWITCH: "0"}):
                launched = embedder.encode(texts, **keywords)
            worst = max(worst, farthest(recorded.astype(np.float64), launched.astype(np.float64)))
        return within(worst, 1e-5)

    def threads(self) -> Facts:
        """Values with other bits where threads share an Embedder."""
        embedder = self.embedder(self.place.dtype_name)
        texts = [[text] for text in self.texts.texts[:THREADS]]
        wanted = [embedder.encode(one, prompt="") for one in texts]
        other = [1] * len(texts)

        def work(number: int) -> None:
            found = [embedder.encode(texts[number], prompt="") for _ in range(10)]
            other[number] = sum(int((one != wanted[number]).sum()) for one in found)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return within(float(sum(other)), 0.0)


def fp8_cases(stage: str, options: Facts) -> Sequence[Case]:
    """Each op on backend "fp8" against its specification; then the model, without the gate.

    Random weights do not pass it: what it would refuse is in the line, as the least cosine.
    """
    place = Place.here(options["dry"])
    found = [
        case(place, f"op {name}", functools.partial(fp8_op, place, name), 2.0)
        for name in IN_FP8
        if name != "gelu"
    ]
    if place.is_gpu:
        models = models_of(place, options, of_ours(place, ("ours", FP8)))
        return [*matched(found, options), *races(place, models, AGAIN, options)]
    # the interpreter's own rounding to e4m3 is not a GPU's
    from tests.interpreter import fp8

    fp8.install()
    return matched(found, options)


def fp8_op(place: Place, name: str) -> Facts:
    """One op at some numbers of tokens.

    Raises: WrongValues: it is off by more than rounding explains.
    """
    (model,) = place.models("nomic")
    found = []
    for tokens in FP8_DRY_TOKENS if place.dry else FP8_TOKENS:
        problem, _ = ops.makers(model)[name](model, place.bench.draw(), tokens)
        x = ROUNDED.get(name, lambda x: x)(problem.tensors["x"])
        given: Any = problem.tensors | {"x": x}
        with torch.inference_mode():
            mine = problem.bind(select_ops(place.device, place.dtype, "fp8"), given)()
            wanted = values(problem.bind(FP8_REFERENCE, given)())
            bound = FP8_ERROR if isinstance(mine, torch.Tensor) else FP8_STEPS
            error = gemm.off_by(values(mine), wanted.double())
        if not error <= bound:
            raise WrongValues(f"{tokens} tokens: off by {error:.3g} of its size, allowed {bound}")
        found.append({"tokens": tokens, "error": error, "bound": bound})
    worst = max(one["error"] for one in found)
    return {"errors": found, "said": f"off by {worst:.2g} of its size"}


def unit(vectors: np.ndarray) -> np.ndarray:
    """The same in length 1, in fp64."""
    wide = vectors.astype(np.float64)
    scaled: np.ndarray = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return scaled


def farthest(a: np.ndarray, b: np.ndarray) -> float:
    """One minus the least cosine of two sets of unit vectors."""
    return 1.0 - measure.cosines(a, b)[1]
