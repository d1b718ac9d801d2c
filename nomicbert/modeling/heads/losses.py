"""Losses of the heads, in fp32, and the checks of their labels.

Labels count from 0; IGNORED marks a token without one. Each loss is a mean over the labels of its
batch, or with `items` the sum divided by that number: of all batches whose gradients are added up.
Source: the heads of transformers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert.modeling.labels import Problem
from nomicbert.modeling.packing import Padding

IGNORED = -100
Items = Tensor | int | None


def reduction(items: Items) -> str:
    """How torch reduces a loss that `divided` finishes."""
    return "mean" if items is None else "sum"


def divided(loss: Tensor, items: Items) -> Tensor:
    """The sum over the labels of a batch as a part of the mean over all."""
    if items is None:
        return loss
    return loss / (items.to(loss.device) if isinstance(items, Tensor) else items)


def classes(logits: Tensor, labels: Tensor, items: Items = None) -> Tensor:
    """Mean cross entropy over the rows that have a label.

    Args:
        logits: (N, classes).
        labels: (N,) int, 0 to classes - 1, or -100.
        items: see above.

    Raises: ValueError: a label out of range.
    """
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    labels = labels.long()
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= logits.shape[1]))]
    if wrong.numel():
        raise ValueError(
            f"labels must be 0 to {logits.shape[1] - 1}, or {IGNORED} where there is none, not "
            f"{int(wrong[0])}"
        )
    how = reduction(items)
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction=how)
    return divided(loss, items)


def tokens(logits: Tensor, labels: Tensor, padding: Padding, items: Items = None) -> Tensor:
    """Mean cross entropy over the tokens that have a label.

    Args:
        logits: (T, classes) of the packed tokens.
        labels: (batch, seq_len) int, -100 wherever attention_mask is 0.
        padding: positions of the tokens.
        items: see above.

    Raises: ValueError: wrong shape, a label out of range or on padding.
    """
    shape = (padding.rows, padding.columns)
    if tuple(labels.shape) != shape:
        raise ValueError(f"labels must be {shape}, not {tuple(labels.shape)}")
    flat = labels.flatten()
    kept = flat[padding.places]
    if int((flat != IGNORED).sum()) != int((kept != IGNORED).sum()):
        raise ValueError(
            f"labels must be {IGNORED} where attention_mask is 0: those tokens are not computed"
        )
    return classes(logits, kept, items)


def texts(
    logits: Tensor, labels: Tensor, problem_type: Problem | None, items: Items = None
) -> Tensor:
    """The loss for one label (or one row of labels) per text.

    Args:
        logits: (batch, num_labels).
        labels: (batch,) int for single_label_classification; (batch, num_labels) float for
            multi_label_classification; (batch,) or (batch, num_labels) float for regression.
        problem_type: None means regression for one column; otherwise integer labels mean
            single_label_classification and float labels multi_label_classification.
        items: see above.

    Raises: ValueError: labels of the wrong shape, or out of range.
    """
    count = logits.shape[1]
    if problem_type is None:
        problem_type = "single_label_classification"
        if labels.is_floating_point():
            problem_type = "multi_label_classification"
        if count == 1:
            problem_type = "regression"
    batch = logits.shape[0]
    shape: tuple[int, ...] = (batch, count)
    if problem_type == "single_label_classification" or (count == 1 and labels.dim() == 1):
        shape = (batch,)
    if tuple(labels.shape) != shape:
        raise ValueError(f"labels of {problem_type} must be {shape}, not {tuple(labels.shape)}")
    if problem_type == "single_label_classification":
        return classes(logits, labels, items)
    wanted, found = labels.view_as(logits).float(), logits.float()
    of_all = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    return divided(of_all(found, wanted, reduction=reduction(items)), items)


def spans(starts: Tensor, ends: Tensor, first: Tensor, last: Tensor, padding: Padding) -> Tensor:
    """Mean cross entropy of the first and the last token of an answer.

    Args:
        starts: (batch, seq_len) logits of the first token.
        ends: (batch, seq_len) logits of the last token.
        first: (batch,) or (batch, 1) int, index of the true first token; seq_len or more if the
            answer is not in the text, which leaves the row out of the loss.
        last: the same for the last token.
        padding: positions of the tokens; an answer cannot start or end on padding.

    Raises: ValueError: wrong shape, or a position below 0 or on padding.
    """
    batch, length = starts.shape
    # one extra column, for answers that are not in the text
    tokens = starts.new_zeros(batch * length, dtype=torch.bool).index_fill(0, padding.places, True)
    possible = F.pad(tokens.view(batch, length), (0, 1), value=True)
    losses = []
    for name, logits, given in (("start", starts, first), ("end", ends, last)):
        if tuple(given.shape) not in ((batch,), (batch, 1)) or given.is_floating_point():
            raise ValueError(
                f"{name}_positions must be ({batch},) integers, not {tuple(given.shape)} of "
                f"{given.dtype}"
            )
        places = given.reshape(batch).long()
        if places.numel() and int(places.min()) < 0:
            raise ValueError(f"{name}_positions count from 0, not {int(places.min())}")
        places = places.clamp(max=length)
        wrong = (~possible.gather(1, places[:, None])).nonzero()
        if wrong.numel():
            row = int(wrong[0, 0])
            raise ValueError(
                f"{name}_positions of row {row} is {int(places[row])}, where attention_mask is 0"
            )
        losses.append(F.cross_entropy(logits.float(), places, ignore_index=length))
    return torch.stack(losses).mean()
