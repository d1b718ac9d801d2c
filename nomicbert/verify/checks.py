"""The checks of one of our models, in one dtype on one backend."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nomicbert.embedder import Embedder
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.loading.tensor_names import canonical, recipes
from nomicbert.modeling.model import NomicBert
from nomicbert.user_warnings import TruncationWarning
from nomicbert.verify import invariance, measures
from nomicbert.verify.bounds import HALF_VALUES
from nomicbert.verify.formula import matryoshka
from nomicbert.verify.report import Row
from nomicbert.verify.texts import TEXTS, Batch
from nomicbert.verify.truth import Truth

# The Matryoshka sizes in nomic-embed-text-v1.5's card.
SIZES = (768, 512, 256, 128, 64)


def tensors_row(folder: Path, model: NomicBert) -> Row:
    """Count elements of the model without a tensor, and elements of taken tensors without a place.

    Args:
        folder: of the weights.
        model: loaded from it. Rows that pad the vocabulary come from no tensor and do not count.
    """
    files, parameters = TensorFiles(folder), dict(model.named_parameters())
    parts = {part for recipe in recipes(model.config, list(parameters)) for part in recipe.parts}
    taken = [name for name in files.names() if canonical(name) in parts]
    read = sum(math.prod(files.shape(name)) for name in taken)
    words = next(files.shape(name) for name in taken if name.endswith("word_embeddings.weight"))
    padding = (model.config.vocab_size - words[0]) * words[1]
    filled = sum(p.numel() for p in parameters.values() if not p.is_meta)
    held = sum(p.numel() for p in parameters.values())
    lost = abs(filled - padding - read) + held - filled
    what = f"{len(taken)} taken, {len(files.names()) - len(taken)} unread"
    return Row("tensors", None, None, what, "lost", lost, 0)


def hidden_rows(
    model: NomicBert, truth: Truth, theirs: dict[str, Tensor], backend: str
) -> list[Row]:
    """Hidden states of a padded batch against the reference.

    Args:
        model: our model.
        truth: of the reference.
        theirs: the reference's states in the model's dtype, by form of attention.
        backend: of the model.
    """
    ours, padding = _packed_states(model, truth.batch)
    kept: slice | Tensor = slice(None) if truth.clear is None else truth.clear
    bound = measures.half_bound(model.dtype)
    if bound is None:
        note = "" if truth.clear is None else f", {int(truth.clear.sum())} tokens"
        return [
            measures.hidden_row(ours[:, kept], states[:, kept], padding, backend, form + note)
            for form, states in theirs.items()
        ]
    (states,) = theirs.values()
    # rounding to 16 bits can flip the routing even of tokens that are clear in float32
    judged = truth.clear is None and ours[-1].numel() >= HALF_VALUES
    return measures.half_rows(ours, states, truth.states, bound, backend, judged)


def embedding_rows(embedder: Embedder, truth: Truth, backend: str) -> list[Row]:
    """Vectors of the sentences, in full width and in each Matryoshka size of the card."""
    dtype = embedder.model.dtype
    kept: slice | Tensor = slice(None) if truth.clear_texts is None else truth.clear_texts
    unit = truth.unit[kept]
    what = f"{len(unit)} vectors"
    judged = truth.clear_texts is None or (dtype == torch.float32 and len(unit) > 0)
    ours = encode(embedder, TEXTS, normalize_embeddings=True)[kept]
    rows = [measures.embedding_row(ours, unit, dtype, backend, what, judged)]
    if dtype != torch.float32 or not embedder.pooling.matryoshka_layer_norm:
        return rows
    for size in SIZES:
        if size <= truth.vectors.shape[1]:
            ours = encode(embedder, TEXTS[:-1], matryoshka_dim=size)  # the long one takes longest
            wanted = matryoshka(truth.vectors[:-1], size)
            rows.append(measures.matryoshka_row(ours, wanted, backend))
    return rows


def invariance_row(embedder: Embedder) -> Row:
    """Count vectors that are not bit-identical; see `nomicbert.verify.invariance`."""
    return invariance.invariance_row(
        embedder,
        lambda texts: encode(embedder, texts),
        lambda texts: encode(embedder, texts, batch_tokens=150),
    )


def encode(embedder: Embedder, texts: Sequence[str], **keywords: Any) -> Tensor:
    """Vectors (n, dim) without a prompt; long texts are cut silently, as by the reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        vectors = embedder.encode(
            list(texts), prompt="", show_progress_bar=False, convert_to_tensor=True, **keywords
        )
    on_cpu: Tensor = vectors.cpu()
    return on_cpu


@torch.no_grad()
def _packed_states(model: NomicBert, batch: Batch) -> tuple[Tensor, float]:
    """(layers + 1, tokens, hidden) of a padded batch, and the largest value in its padding."""
    arguments = batch.padded(model.device)
    found = model(**arguments, output_hidden_states=True).hidden_states or ()
    mask = arguments["attention_mask"].bool()
    padding = max(measures.largest(state[~mask]) for state in found)
    return torch.stack([state[mask] for state in found]).cpu(), padding
