"""The check of every export: its outputs in onnxruntime beside the model's, on texts of its own.

The texts are padded into batches of different lengths, so that a mask that is ignored shows; one
fills what it can of the model's positions, and of a model with dynamic NTK scaling one is longer
than it was trained on.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nomicbert.errors import ExportError
from nomicbert.export.graph import INPUTS, Precision
from nomicbert.export.source import HIDDEN, VECTOR, Source
from nomicbert.modeling.layer import Layer
from nomicbert.modeling.mlp import MixtureOfExperts
from nomicbert.modeling.packing import PackedBatch, pack
from nomicbert.text.samples import LONG, TEXTS
from nomicbert_kernels import values

# Of float32: the largest difference of a value, relative to the length of its row.
MOST_DIFFERENCE = 1e-5
# Of the others: the least cosine of a text's vector, or of all logits together.
LEAST_COSINE: dict[Precision, float] = {"fp16": 0.9999, "q8": 0.98}
# Of the text that fills the positions, and beyond the trained length.
LONGEST, BEYOND = 512, 64
# Experts of a token change by rounding if the last that is taken leads by less.
ROUTER_MARGIN = 1e-5


@dataclass(frozen=True)
class Difference:
    """How far one output of an export is from the model's.

    Attributes:
        output: its name.
        measure: "difference" (at most `bound`), or "cosine" (at least).
        value: the worst one found.
        bound: of the value.
    """

    output: str
    measure: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the value is within its bound; NaN is not."""
        if self.measure == "cosine":
            return self.value >= self.bound
        return self.value <= self.bound


@dataclass(frozen=True)
class Case:
    """A padded batch, and what the model gives for it.

    Attributes:
        inputs: (B, S) int64 of each input.
        batch: the same texts, packed.
        truth: name of an output -> one row per text or per token.
        steady: (B,) bool, texts whose experts no rounding changes.
    """

    inputs: dict[str, np.ndarray]
    batch: PackedBatch
    truth: dict[str, Tensor]
    steady: Tensor


def cases_of(source: Source) -> list[Case]:
    """The texts of the check with the model's outputs; seconds for a model of common size."""
    return [_case(source, ids, types) for ids, types in _texts(source)]


def _texts(source: Source) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """Batches of token ids, and of token types."""
    config, limit = source.encoder.config, source.max_length
    longest = min(limit, LONGEST)
    if source.reranker is not None:
        pairs = list(itertools.pairwise(TEXTS))
        ids, types, _ = source.tokenizer.encode_pairs(pairs, longest)
        yield ids, types
        return
    ids, _ = source.tokenizer.encode(TEXTS, longest)
    yield ids, [[0] * len(text) for text in ids]
    trained = config.max_trained_positions
    if source.encoder.rotary is not None and config.rotary_scaling_factor and limit > trained:
        longest = min(limit, trained + BEYOND)
    # nearly five characters per token of this text, and never less than one
    (long,), _ = source.tokenizer.encode([LONG * (1 + longest // 100)], longest)
    yield [long, ids[0]], [[0] * len(long), [0] * len(ids[0])]


def _case(source: Source, ids: list[list[int]], types: list[list[int]]) -> Case:
    width = max(map(len, ids))
    inputs = {name: np.zeros((len(ids), width), np.int64) for name in INPUTS}
    for row, (text, kinds) in enumerate(zip(ids, types, strict=True)):
        for name, row_of in zip(INPUTS, (text, [1] * len(text), kinds), strict=True):
            inputs[name][row, : len(text)] = row_of
    flat = torch.tensor([kind for text in types for kind in text])
    batch = replace(pack(ids), token_type_ids=flat)
    return Case(inputs, batch, source.truth(batch), _steady(source, batch))


@torch.inference_mode()
def _steady(source: Source, batch: PackedBatch) -> Tensor:
    """Texts in which no token is about to get other experts: (B,) bool."""
    encoder = source.encoder
    clear = torch.ones(batch.position_ids.shape[0], dtype=torch.bool)
    if encoder.config.num_experts:
        states: list[Tensor] = []
        encoder.encode_packed(batch, states=states)
        ctx = encoder.context(batch)
        for x, layer in zip(states, encoder.layers, strict=False):
            assert isinstance(layer, Layer)
            moe = layer.mlp
            if isinstance(moe, MixtureOfExperts) and moe.top_k < moe.router.out_features:
                attended, residual = layer.attention(x, ctx)
                h = values(ctx.layer_norm(attended, layer.attention_norm, residual))
                best = moe.router(h).softmax(-1).topk(moe.top_k + 1).values
                clear &= best[:, -2] - best[:, -1] > ROUTER_MARGIN
    parts = torch.split(clear, list(batch.lengths))
    return torch.stack([part.all() for part in parts])


def differences(path: Path, precision: Precision, cases: list[Case]) -> list[Difference]:
    """Run a file in onnxruntime, and compare.

    Args:
        path: of the ONNX file.
        precision: its own.
        cases: of its source.

    Raises: ExportError: a difference beyond its bound; it names the output and the figure.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: dict[str, list[Difference]] = {}
    for case in cases:
        names = list(case.truth)
        for name, given in zip(names, session.run(names, case.inputs), strict=True):
            measured = _measured(name, torch.from_numpy(given), case, precision)
            found.setdefault(name, []).extend(measured)
    worst = [_worst(measured) for measured in found.values() if measured]
    for one in worst:
        if not one.holds:
            raise ExportError(
                f"the {precision} export is not the model: the {one.measure} of {one.output} is "
                f"{one.value:.3g}, and its bound {one.bound:g}; nothing was written"
            )
    return worst


def _measured(name: str, given: Tensor, case: Case, precision: Precision) -> list[Difference]:
    truth = case.truth[name]
    lengths = torch.tensor(case.batch.lengths)
    per_token = (
        truth.shape[0] == int(lengths.sum()) and given.shape[:2] == case.inputs[INPUTS[0]].shape
    )
    if per_token:
        kept = torch.from_numpy(case.inputs["attention_mask"]) > 0
        given = given.view(*kept.shape, -1)[kept]
    if precision == "fp32":
        steady = case.steady.repeat_interleave(lengths) if per_token else case.steady
        if not steady.any():
            raise ExportError("no text of the check has steady experts: nothing can be compared")
        given, truth = given[steady].double(), truth[steady].double()
        scale = truth.norm(dim=-1, keepdim=True) if name in (HIDDEN, VECTOR) else truth.abs().max()
        worst = ((given - truth).abs() / scale).max()
        return [Difference(name, "difference", float(worst), MOST_DIFFERENCE)]
    if name == HIDDEN:
        return []  # single tokens have no bound of their own
    if name != VECTOR:
        given, truth = given.reshape(1, -1), truth.reshape(1, -1)
    cosines = torch.cosine_similarity(given.double(), truth.double(), dim=-1)
    return [Difference(name, "cosine", float(cosines.min()), LEAST_COSINE[precision])]


def _worst(measured: list[Difference]) -> Difference:
    """The one furthest from its bound; NaN before all."""
    sign = 1.0 if measured[0].measure == "cosine" else -1.0
    return min(measured, key=lambda one: sign * one.value if one.value == one.value else -np.inf)
