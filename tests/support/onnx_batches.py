"""ONNX exports in tests: padded batches, a session of one thread, the model's outputs."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from nomicbert import Embedder
from nomicbert.modeling.packing import PackedBatch, Padding, unpad
from nomicbert.user_warnings import EmptyRowWarning


@dataclass(frozen=True)
class Padded:
    """Token ids, mask and token types, (B, S) int64 each."""

    ids: np.ndarray
    mask: np.ndarray
    types: np.ndarray

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "token_type_ids": self.types,
        }

    def row(self, index: int) -> Padded:
        """One text alone, without its padding."""
        kept = self.mask[index] > 0
        return Padded(*(x[index][kept][None] for x in (self.ids, self.mask, self.types)))

    def packed(self) -> tuple[PackedBatch, Padding]:
        """The same texts for the model: positions are columns, as in the references."""
        ids, mask, types = map(torch.from_numpy, (self.ids, self.mask, self.types))
        if self.mask.any(1).all():
            return unpad(ids, mask, types, None)
        with pytest.warns(EmptyRowWarning):
            return unpad(ids, mask, types, None)


def draw(
    seed: int,
    lengths: Sequence[int],
    *,
    words: int,
    types: int = 1,
    left: Collection[int] = (),
) -> Padded:
    """Draw texts of these lengths; padding has random ids too, so that using it shows.

    Args:
        seed: of the values.
        lengths: tokens of each text; 0 for an empty row.
        words: number of token ids.
        types: number of token types.
        left: rows that are padded on the left.
    """
    rng = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    mask = np.zeros(shape, np.int64)
    for row, length in enumerate(lengths):
        mask[row, : length or 0] = 1
        if row in left:
            mask[row] = mask[row, ::-1]
    return Padded(rng.integers(0, words, shape), mask, rng.integers(0, types, shape))


def padded(texts: Sequence[Sequence[int]]) -> Padded:
    """Pad token ids on the right."""
    batch = draw(0, [len(text) for text in texts], words=1)
    for row, text in enumerate(texts):
        batch.ids[row, : len(text)] = text
    return batch


def for_model(embedder: Embedder, seed: int, lengths: Sequence[int], left: int = -1) -> Padded:
    """Draw texts for a model; one row may be padded on the left."""
    config = embedder.model.config
    return draw(
        seed,
        lengths,
        words=config.vocab_size,
        types=config.type_vocab_size,
        left={left},
    )


def open_session(path: Path | bytes, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Open a file with one thread; `optimized` gets the graph that is run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(session: onnxruntime.InferenceSession, batch: Padded) -> dict[str, Tensor]:
    """All outputs by name; each must be finite everywhere, padding included."""
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, map(torch.from_numpy, session.run(names, batch.inputs)), strict=True))
    for name, values in found.items():
        assert values.dtype == torch.float32
        assert values.isfinite().all(), name
    return found


@torch.inference_mode()
def wanted(embedder: Embedder, batch: Padded, own_theta: bool = False) -> tuple[Tensor, Tensor]:
    """The model's hidden states, zeros for padding, and its vectors, zeros for empty rows.

    Args:
        embedder: of the checkpoint.
        batch: of its tokens.
        own_theta: scale each text's rotary angles by its own length, as `Embedder.encode` does,
            not by the padded length, as `NomicBert.forward` does. Needs padding on the right.
    """
    texts, padding = batch.packed()
    if own_theta:
        texts = replace(texts, rope_lengths=texts.lengths)
    hidden = padding.pad(embedder.model.encode_packed(texts))
    return hidden, embedder.embedding_model(texts)


def spread(given: Tensor, truth: Tensor) -> float:
    """Largest difference of a value, relative to the L2 norm of its row in the truth."""
    assert given.shape == truth.shape
    norms = truth.double().norm(dim=-1, keepdim=True)
    return float(((given.double() - truth.double()).abs() / norms).max())


def least_cosine(given: Tensor, truth: Tensor) -> float:
    """Of a vector and its true one."""
    assert given.shape == truth.shape
    return float(torch.cosine_similarity(given.double(), truth.double(), dim=-1).min())


def lengths_of(seed: int, count: int, most: int) -> list[int]:
    """Draw lengths from 1 to `most`, with one of each."""
    rng = random.Random(seed)
    return [most, *(rng.randint(1, most) for _ in range(count - 2)), 1]
