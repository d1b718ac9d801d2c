"""Whole models against transformers, and backend "fp8" against its specification."""

import functools
import os
import threading
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bench.gpu import gemm, ops
from bench.gpu.forms import IN_FP8, ROUNDED
from bench.gpu.place import Place
from bench.gpu.proof.cases import case, matched, within
from bench.gpu.proof.speed import MODEL, TUNED_CASES, models_of, of_ours, races
from bench.gpu.rivals import FP8, Budgets
from bench.gpu.runner.child import Case, Facts
from bench.harness import WrongValues
from nomicbert.benchmark import measure
from nomicbert.benchmark.peers import Setting
from nomicbert.benchmark.torch_peers import NAIVE_BATCH, Native
from nomicbert.benchmark.workloads import Case as Texts
from nomicbert.embedder import Embedder
from nomicbert.runtime import graphs
from nomicbert.verify.bounds import EMBEDDING
from nomicbert_kernels import Activation, select_ops, values
from nomicbert_kernels.backend import FP8_REFERENCE

# Case -> method of Suite, and estimated seconds.
CHECKS = {
    "fp32 against transformers": ("full", 9.0),
    "16 bits against transformers": ("half", 8.0),
    "the same bits again": ("repeats", 4.0),
    "graphs against launches": ("graphs", 5.0),
    "threads": ("threads", 5.0),
}
# Tokens of the compared texts; passes that have to give identical bits.
TOKENS, DRY_TOKENS = 16384, 200
PASSES, DRY_PASSES = 20, 2
THREADS = 4
# Largest difference of unit vectors in fp32: a few times the bound on a CPU, since cuBLAS sums in
# other orders. TF32 would cost a hundred times as much.
FULL = 5 * EMBEDDING
# Norm of the error relative to the norm of the result. Where the result itself is rounded to e4m3,
# some values round to the neighbouring one, an eighth away.
FP8_ERROR, FP8_STEPS = 0.02, 0.04
FP8_TOKENS, FP8_DRY_TOKENS = (17, 512, 16896), (33,)


def cases(stage: str, options: Facts) -> Sequence[Case]:
    """The whole model against transformers, and against itself: passes, graphs, threads."""
    place = Place.here(options["dry"])
    suite = Suite(place, options)
    found = [
        case(place, name, getattr(suite, work), seconds) for name, (work, seconds) in CHECKS.items()
    ]
    return matched(found, options)


class Suite:
    """Checks of one model that share loaded checkpoints."""

    def __init__(self, place: Place, options: Facts) -> None:
        """Nothing is loaded yet."""
        self.place = place
        self.models = models_of(place, options, of_ours(place, ()))

    @functools.cached_property
    def texts(self) -> Texts:
        """Passages of mixed lengths."""
        tokens = DRY_TOKENS if self.place.dry else TOKENS
        found = self.models.checkpoint(MODEL).case("passages", tokens, self.place.device)
        assert found is not None
        return found

    @functools.cached_property
    def setting(self) -> Setting:
        """The setting that peers are loaded with."""
        return self.models.group("models", MODEL).setting

    @functools.lru_cache  # noqa: B019, one suite a process
    def vectors_of_transformers(self, dtype: str) -> np.ndarray:
        """Vectors of transformers in a dtype, in batches of 32."""
        runner = Native(self.setting, dtype, NAIVE_BATCH, compiled=False)
        return runner.vectors(self.texts, runner.ways(self.texts)[0])

    @functools.lru_cache  # noqa: B019
    def embedder(self, dtype: str) -> Embedder:
        """Our Embedder in a dtype."""
        backend: Any = self.place.backend
        folder = self.models.checkpoint(MODEL).folder
        return Embedder.from_pretrained(
            folder, device=self.place.device, dtype=dtype, backend=backend
        )

    def vectors(self, dtype: str) -> np.ndarray:
        """Our vectors, with CUDA graphs where a batch is small enough."""
        runner = Budgets(self.embedder(dtype))
        return runner.vectors(self.texts, runner.ways(self.texts)[0])

    def full(self) -> Facts:
        """Largest difference of unit vectors in fp32."""
        got, wanted = unit(self.vectors("float32")), unit(self.vectors_of_transformers("float32"))
        return within(float(np.abs(got - wanted).max()), FULL)

    def half(self) -> Facts:
        """1 - cosine of the worst text, at most twice that of transformers in the same dtype."""
        dtype = self.place.dtype_name
        truth = unit(self.vectors_of_transformers("float32"))
        return within(farthest(unit(self.vectors(dtype)), truth), self.rounding(dtype))

    def rounding(self, dtype: str) -> float:
        """1 - cosine that two roundings explain: twice that of transformers in the dtype."""
        truth = unit(self.vectors_of_transformers("float32"))
        return 2 * farthest(unit(self.vectors_of_transformers(dtype)), truth) + 1e-5

    def repeats(self) -> Facts:
        """Number of values whose bits differ from the first pass."""
        dtype = self.place.dtype_name
        first, passes = self.vectors(dtype), DRY_PASSES if self.place.dry else PASSES
        other = sum(int((self.vectors(dtype) != first).sum()) for _ in range(passes - 1))
        return within(float(other), 0.0) | {"passes": passes}

    def graphs(self) -> Facts:
        """1 - cosine between CUDA graphs and single launches, each rounded as in `half`."""
        dtype = self.place.dtype_name
        embedder, worst, seen = self.embedder(dtype), 0.0, False
        keywords: dict[str, Any] = {"prompt": "", "normalize_embeddings": True}
        for count in (1, 3, 20, len(self.texts.texts)):
            texts = self.texts.texts[:count]
            recorded = embedder.encode(texts, **keywords)
            # check before the call without graphs, which frees them
            seen |= bool(embedder.graphs._kept)
            with mock.patch.dict(os.environ, {graphs.SWITCH: "0"}):
                launched = embedder.encode(texts, **keywords)
            worst = max(worst, farthest(unit(recorded), unit(launched)))
        # otherwise single launches would have been compared with themselves
        if self.place.is_gpu and not seen:
            raise WrongValues("no graph was recorded")
        return within(worst, self.rounding(dtype))

    def threads(self) -> Facts:
        """Number of values whose bits differ when threads share an Embedder."""
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
    """Each op on backend "fp8" against its specification; then the model, without its gate.

    The gate refuses random weights. The line holds the least cosine, which it would have tested.
    """
    place = Place.here(options["dry"])
    found = [
        case(place, f"op {name}", functools.partial(fp8_op, place, name), 2.0)
        for name in IN_FP8
        if name != "gelu"
    ]
    if place.is_gpu:
        models = models_of(place, options, of_ours(place, ("ours", FP8)))
        return [*matched(found, options), *races(place, models, TUNED_CASES, options)]
    return matched(found, options)


def fp8_op(place: Place, name: str) -> Facts:
    """Relative error of one op at several numbers of tokens.

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
            error, bound = of_specification(mine, problem.bind(FP8_REFERENCE, given)())
        if not error <= bound:
            raise WrongValues(f"{tokens} tokens: off by {error:.3g} of its size, allowed {bound}")
        found.append({"tokens": tokens, "error": error, "bound": bound})
    worst = max(one["error"] for one in found)
    return {"errors": found, "said": f"off by {worst:.2g} of its size"}


def of_specification(mine: Tensor | Activation, wanted: Tensor | Activation) -> tuple[float, float]:
    """Error of a result in fp8 relative to the specification's, and its bound."""
    if isinstance(mine, Tensor) or isinstance(wanted, Tensor):
        return gemm.off_by(values(mine), values(wanted).double()), FP8_ERROR
    # compare the scaled e4m3 values, not the unrounded copy that an Activation may keep
    a, b = (values(Activation(one.data, one.scale)) for one in (mine, wanted))
    return gemm.off_by(a, b.double()), FP8_STEPS


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors scaled to length 1, in fp64."""
    wide = vectors.astype(np.float64)
    scaled: np.ndarray = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return scaled


def farthest(a: np.ndarray, b: np.ndarray) -> float:
    """One minus the least cosine of two sets of unit vectors."""
    return 1.0 - measure.cosines(a, b)[1]
