"""The check of every export: its outputs in onnxruntime against the model's, on sample texts.

The texts are padded into batches of different lengths, so that a mask that is ignored shows; one
fills what it can of the model's positions, and of a model with dynamic NTK scaling one is longer
than it was trained on.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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
# Rounding may change the experts of a token if the last that is taken leads by less. A text with
# such a token is left out of float32's bound, and has that of 8 bits in float16.
ROUTER_MARGIN: dict[Precision, float] = {"fp32": 1e-5, "fp16": 5e-3, "q8": 0.0}


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
        margins: (B,) how far the last expert that is taken leads, over all tokens of a text; inf
            without experts.
        exact: whether only float32 is held to it: texts with types that no such text has.
    """

    inputs: dict[str, np.ndarray]
    batch: PackedBatch
    truth: dict[str, Tensor]
    margins: Tensor
    exact: bool


def cases_of(source: Source) -> list[Case]:
    """The texts of the check with the model's outputs; seconds for a model of common size."""
    return [_case(source, ids, types) for ids, types in _texts(source)]


def _texts(source: Source) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """Batches of token ids, and of token types."""
    config, limit = source.encoder.config, source.max_length
    longest = min(limit, LONGEST)
    most, trained = longest, config.max_trained_positions
    scaled = source.encoder.rotary is not None and config.rotary_scaling_factor is not None
    if scaled and limit > trained:
        most = min(limit, trained + BEYOND)
    # nearly five characters per token of this text, and never less than one
    long = LONG * (1 + most // 100)
    if source.reranker is not None:
        pairs = list(itertools.pairwise(TEXTS))
        yield source.tokenizer.encode_pairs(pairs, longest)[:2]
        yield source.tokenizer.encode_pairs([(TEXTS[0], long), pairs[0]], most)[:2]
        return
    ids, _ = source.tokenizer.encode(TEXTS, longest)
    yield ids, [[0] * len(text) for text in ids]
    if last := config.type_vocab_size - 1:
        # with the last type from the fourth token on: a graph may be given pairs
        yield ids[:2], [[last * (place > 2) for place in range(len(text))] for text in ids[:2]]
    (full,), _ = source.tokenizer.encode([long], most)
    if scaled:  # the graph has no limit, whatever that of the tokenizer
        full = (full * (trained + BEYOND))[: trained + BEYOND]
    yield [full, ids[0]], [[0] * len(full), [0] * len(ids[0])]


def _case(source: Source, ids: list[list[int]], types: list[list[int]]) -> Case:
    width = max(map(len, ids))
    inputs = {name: np.zeros((len(ids), width), np.int64) for name in INPUTS}
    for row, (text, kinds) in enumerate(zip(ids, types, strict=True)):
        for name, row_of in zip(INPUTS, (text, [1] * len(text), kinds), strict=True):
            inputs[name][row, : len(text)] = row_of
    flat = torch.tensor([kind for text in types for kind in text])
    batch = replace(pack(ids), token_type_ids=flat)
    exact = source.reranker is None and bool(flat.any())
    return Case(inputs, batch, source.truth(batch), _margins(source, batch), exact)


@torch.inference_mode()
def _margins(source: Source, batch: PackedBatch) -> Tensor:
    """By how much other experts are less probable than those that a text's tokens get: (B,)."""
    encoder = source.encoder
    least = torch.full((batch.position_ids.shape[0],), torch.inf)
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
                least = torch.minimum(least, best[:, -2] - best[:, -1])
    return torch.stack([part.min() for part in torch.split(least, list(batch.lengths))])


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
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: dict[str, list[Rows]] = {}
    for case in cases:
        if case.exact and precision != "fp32":
            continue
        names = list(case.truth)
        for name, given in zip(names, session.run(names, case.inputs), strict=True):
            rows = _rows(name, torch.from_numpy(given), case, precision)
            found.setdefault(name, []).append(rows)
    worst = [
        one
        for name, parts in found.items()
        for one in _measured(name, Rows(*map(torch.cat, zip(*parts, strict=True))), precision)
    ]
    if not worst:
        raise ExportError(
            f"the {precision} export cannot be compared with the model: in every text of the check "
            "two experts are almost equally probable, so rounding decides"
        )
    for one in worst:
        if not one.holds:
            raise ExportError(
                f"the {precision} export is not the model: the {one.measure} of {one.output} is "
                f"{one.value:.3g}, and its bound {one.bound:g}; nothing was written"
            )
    return worst


class Rows(NamedTuple):
    """One output in a form that can be compared.

    Attributes:
        given: (n, N) fp64 of the export.
        truth: the same of the model.
        margins: (n,) of the texts that the rows belong to.
    """

    given: Tensor
    truth: Tensor
    margins: Tensor


def _rows(name: str, given: Tensor, case: Case, precision: Precision) -> Rows:
    """The rows of one batch: per kept token, or per text."""
    truth, margins = case.truth[name].double(), case.margins
    lengths = torch.tensor(case.batch.lengths)
    given = given.double()
    if truth.shape[0] == int(lengths.sum()) and given.shape[:2] == case.inputs[INPUTS[0]].shape:
        kept = torch.from_numpy(case.inputs["attention_mask"]) > 0
        given = given.view(*kept.shape, -1)[kept]
        if name == HIDDEN and precision != "fp32":  # the means, which pipelines take
            given, truth = (_means(x, case.batch.lengths) for x in (given, truth))
        else:
            margins = margins.repeat_interleave(lengths)
    return Rows(given, truth, margins)


def _means(x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    return torch.stack([part.mean(0) for part in torch.split(x, list(lengths))])


def _measured(name: str, rows: Rows, precision: Precision) -> list[Difference]:
    """Compare one output: a figure for each bound that some of its rows have."""
    given, truth = rows.given, rows.truth
    steady = rows.margins >= ROUTER_MARGIN[precision]
    if precision == "fp32":
        if not steady.any():
            return []
        given, truth = given[steady], truth[steady]
        scale = truth.norm(dim=-1, keepdim=True) if name in (HIDDEN, VECTOR) else truth.abs().max()
        worst = ((given - truth).abs() / scale).max()
        return [Difference(name, "difference", float(worst), MOST_DIFFERENCE)]
    if name not in (HIDDEN, VECTOR):
        # logits count together, and by what tells inputs apart: a common offset hides any fault
        middle = truth.mean(0)
        given, truth = ((x - middle).reshape(1, -1) for x in (given, truth))
        steady = steady.all()[None]
    return [
        Difference(
            name, "cosine", float(torch.cosine_similarity(given[of], truth[of]).min()), bound
        )
        for of, bound in ((steady, LEAST_COSINE[precision]), (~steady, LEAST_COSINE["q8"]))
        if of.any()
    ]
