"""Losses of the heads, against formulas in float64, torch and transformers; label errors."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.loss.loss_utils import (
    ForMaskedLMLoss,
    ForQuestionAnsweringLoss,
    ForSequenceClassificationLoss,
)

from nomicbert.modeling.heads import losses
from nomicbert.modeling.labels import PROBLEMS
from nomicbert.modeling.packing import Padding, unpad

EXACT = 1e-6
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def seeded(seed: int) -> None:
    torch.manual_seed(seed)


def padding_of(mask: Tensor) -> Padding:
    return unpad(torch.zeros_like(mask), mask)[1]


def near(a: Tensor, b: Tensor) -> bool:
    assert a.shape == b.shape == ()
    return abs(float(a) - float(b)) <= EXACT


def by_hand(logits: Tensor, labels: list[int]) -> Tensor:
    """-log p of each label, averaged over the labels that are not ignored."""
    p = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    wanted = [-p[row, label].log() for row, label in enumerate(labels) if label != -100]
    return torch.stack(wanted).mean()


def test_classes() -> None:
    logits = 3 * torch.randn(7, 4)
    labels = [0, 3, -100, 1, -100, 2, 0]
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8):
        loss = losses.classes(logits, torch.tensor(labels, dtype=dtype))
        assert near(loss, by_hand(logits, labels))
    assert near(loss, F.cross_entropy(logits, torch.tensor(labels)))
    assert losses.IGNORED == -100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_are_widened_before_the_softmax(dtype: torch.dtype) -> None:
    logits, labels = (20 * torch.randn(64, 5)).to(dtype), torch.randint(5, (64,))
    wanted = by_hand(logits, labels.tolist())
    loss = losses.classes(logits, labels)
    assert loss.dtype == torch.float32
    assert abs(float(loss) - float(wanted)) <= EXACT * float(wanted)
    narrow = F.cross_entropy(logits, labels)
    assert abs(float(narrow) - float(wanted)) > 10 * EXACT * float(wanted)


def test_without_any_label_there_is_no_loss() -> None:
    """NaN as in transformers: the mean of nothing."""
    logits, labels = torch.randn(3, 4), torch.full((3,), -100)
    assert losses.classes(logits, labels).isnan()
    assert ForMaskedLMLoss(logits, labels, 4).isnan()


@pytest.mark.parametrize("label", [4, 99, -1, -99, -101])
def test_a_class_out_of_range(label: int) -> None:
    labels = torch.tensor([0, -100, label, 3])
    with pytest.raises(ValueError, match=rf"labels must be 0 to 3, or -100 .* not {label}$"):
        losses.classes(torch.randn(4, 4), labels)
    with pytest.raises(ValueError, match=rf"not {label}$"):
        losses.texts(torch.randn(4, 4), labels, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_classes_that_are_not_integers(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1], dtype=dtype)
    with pytest.raises(ValueError, match=f"labels must be integers, not {dtype}"):
        losses.classes(torch.randn(2, 4), labels)
    with pytest.raises(ValueError, match=f"labels must be integers, not {dtype}"):
        losses.texts(torch.randn(2, 4), labels, "single_label_classification")


def test_tokens() -> None:
    """transformers' formula on padded logits against ours on packed ones."""
    padding, padded = padding_of(MASK), 2 * torch.randn(3, 5, 4)
    labels = torch.where(MASK == 1, torch.randint(4, (3, 5)), -100)
    labels[2, 1] = -100
    packed = padded.flatten(0, 1)[padding.places]
    loss = losses.tokens(packed, labels, padding)
    assert near(loss, ForMaskedLMLoss(padded, labels, 4))
    assert near(loss, by_hand(padded.flatten(0, 1), labels.flatten().tolist()))
    # tokens in another order would be another loss
    assert not near(losses.tokens(packed.flip(0), labels, padding), loss)


@pytest.mark.parametrize("place", [(0, 3), (0, 4), (1, 0), (1, 2)])
def test_a_label_on_padding(place: tuple[int, int]) -> None:
    padding = padding_of(MASK)
    labels = torch.full((3, 5), -100)
    labels[2, 0] = 1
    losses.tokens(torch.randn(11, 4), labels, padding)
    labels[place] = 1
    with pytest.raises(ValueError, match="labels must be -100 where attention_mask is 0"):
        losses.tokens(torch.randn(11, 4), labels, padding)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (5, 3), (15,), (3, 5, 1), (11,)])
def test_labels_of_tokens_in_another_shape(shape: tuple[int, ...]) -> None:
    message = re.escape(f"labels must be (3, 5), not {shape}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        losses.tokens(torch.randn(11, 4), torch.zeros(shape, dtype=torch.long), padding_of(MASK))


def test_invalid_labels_of_tokens() -> None:
    padding = padding_of(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"not 4$"):
        losses.tokens(torch.randn(3, 4), torch.tensor([[0, 4, 1]]), padding)
    with pytest.raises(ValueError, match=r"integers, not torch\.float32"):
        losses.tokens(torch.randn(3, 4), torch.tensor([[0.0, 2.0, 1.0]]), padding)


def labels_like(problem: str, count: int, batch: int = 6) -> Tensor:
    if problem == "single_label_classification":
        return torch.randint(count, (batch,))
    if problem == "multi_label_classification":
        return torch.randint(2, (batch, count)).float()
    return torch.randn(batch, count)


def texts_by_hand(logits: Tensor, labels: Tensor, problem: str) -> Tensor:
    if problem == "single_label_classification":
        return by_hand(logits, labels.tolist())
    logits, labels = logits.double(), labels.double().view_as(logits)
    if problem == "regression":
        return (logits - labels).square().mean()
    p = logits.sigmoid()
    return -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_texts(problem: str, count: int) -> None:
    logits, labels = 2 * torch.randn(6, count), labels_like(problem, count)
    loss = losses.texts(logits, labels, problem)
    assert near(loss, texts_by_hand(logits, labels, problem))
    config = SimpleNamespace(num_labels=count, problem_type=problem)
    assert near(loss, ForSequenceClassificationLoss(labels, logits, config))
    if count == 1 and problem != "single_label_classification":  # a column, or none
        assert near(losses.texts(logits, labels[:, 0], problem), loss)


@pytest.mark.parametrize(
    ("count", "labels", "meant"),
    [
        (1, [0.5, -1.0, 2.0], "regression"),
        (1, [[0.5], [-1.0], [2.0]], "regression"),
        (1, [1, 0, 2], "regression"),
        (4, [1, 0, 3], "single_label_classification"),
        (2, [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], "multi_label_classification"),
    ],
)
def test_problem_type_from_the_labels(count: int, labels: list[object], meant: str) -> None:
    logits, given = torch.randn(3, count), torch.tensor(labels)
    config = SimpleNamespace(num_labels=count, problem_type=None)
    wanted = ForSequenceClassificationLoss(given, logits, config)
    assert config.problem_type == meant  # transformers writes it down
    loss = losses.texts(logits, given, None)
    assert near(loss, wanted)
    assert near(loss, losses.texts(logits, given, meant))
    assert loss.dtype == torch.float32


def test_a_text_without_a_label_is_left_out() -> None:
    logits = torch.randn(3, 4)
    loss = losses.texts(logits, torch.tensor([2, -100, 0]), "single_label_classification")
    assert near(loss, by_hand(logits, [2, -100, 0]))


@pytest.mark.parametrize(
    ("problem", "count", "shape", "wanted"),
    [
        ("single_label_classification", 4, (3, 1), "(3,)"),
        ("single_label_classification", 4, (3, 4), "(3,)"),
        ("single_label_classification", 4, (2,), "(3,)"),
        ("single_label_classification", 4, (), "(3,)"),
        ("multi_label_classification", 4, (3,), "(3, 4)"),
        ("multi_label_classification", 4, (4, 3), "(3, 4)"),
        ("multi_label_classification", 4, (12,), "(3, 4)"),
        ("multi_label_classification", 1, (4,), "(3,)"),
        ("regression", 4, (3,), "(3, 4)"),
        ("regression", 4, (3, 1), "(3, 4)"),  # torch would broadcast this with a warning
        ("regression", 1, (3, 4), "(3, 1)"),
        ("regression", 1, (1, 3), "(3, 1)"),
    ],
)
def test_labels_of_texts_in_another_shape(
    problem: str, count: int, shape: tuple[int, ...], wanted: str
) -> None:
    labels = torch.zeros(shape, dtype=torch.long if problem.startswith("single") else torch.float)
    message = re.escape(f"labels of {problem} must be {wanted}, not {shape}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        losses.texts(torch.randn(3, count), labels, problem)


def test_integers_for_several_labels_at_once_are_refused() -> None:
    """Without a problem type integers mean one label per text, as in transformers."""
    labels = torch.tensor([[1, 0], [1, 1]])
    with pytest.raises(ValueError, match="single_label_classification must be"):
        losses.texts(torch.randn(2, 2), labels, None)
    loss = losses.texts(torch.zeros(2, 2), labels, "multi_label_classification")
    assert near(loss, torch.tensor(2.0).log())


WHOLE = torch.ones(4, 6, dtype=torch.long)


def test_spans() -> None:
    """Starts and ends weigh the same, even if different numbers of them are in the text."""
    starts, ends = 2 * torch.randn(4, 6), 2 * torch.randn(4, 6)
    first, last = torch.tensor([0, 5, 2, 6]), torch.tensor([3, 6, 2, 99])
    loss = losses.spans(starts, ends, first, last, padding_of(WHOLE))
    halves = by_hand(starts, [0, 5, 2, -100]) + by_hand(ends, [3, -100, 2, -100])
    assert near(loss, halves / 2)
    assert near(loss, ForQuestionAnsweringLoss(starts, ends, first, last))
    columns = first[:, None].int(), last[:, None].int()
    assert near(losses.spans(starts, ends, *columns, padding_of(WHOLE)), loss)
    assert not near(losses.spans(ends, starts, first, last, padding_of(WHOLE)), loss)


def test_spans_over_padding() -> None:
    """Padding has the dtype's lowest value, so it is excluded."""
    padding, kept = padding_of(MASK), MASK == 1
    starts, ends = torch.randn(2, 3, 5)
    first, last = torch.tensor([0, 3, 4]), torch.tensor([2, 4, 4])
    for dtype in (torch.float32, torch.float16):
        low = torch.finfo(dtype).min
        given = [torch.where(kept, x, low).to(dtype) for x in (starts, ends)]
        loss = losses.spans(*given, first, last, padding)
        halves = [
            torch.stack(
                [
                    by_hand(x[row, kept[row]].to(dtype)[None], [int(kept[row, :at].sum())])
                    for row, at in enumerate(places.tolist())
                ]
            ).mean()
            for x, places in ((starts, first), (ends, last))
        ]
        assert near(loss, sum(halves) / 2)


@pytest.mark.parametrize(("row", "place"), [(0, 3), (1, 0), (1, 2)])
@pytest.mark.parametrize("name", ["start", "end"])
def test_an_answer_on_padding(name: str, row: int, place: int) -> None:
    good, bad = torch.tensor([1, 1, 1]), torch.tensor([1, 1, 1])
    bad[row] = place
    given = (bad, good) if name == "start" else (good, bad)
    message = f"{name}_positions of row {row} is {place}, where attention_mask is 0"
    with pytest.raises(ValueError, match=message):
        losses.spans(torch.randn(3, 5), torch.randn(3, 5), *given, padding_of(MASK))


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.tensor([0, -1, 2, 3]), "_positions count from 0, not -1"),
        (torch.tensor([0, -100, 2, 3]), "_positions count from 0, not -100"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), r"must be \(4,\) integers, not \(4,\) of torch.float"),
        (torch.tensor([0, 1, 2]), r"must be \(4,\) integers, not \(3,\)"),
        (torch.tensor([[0, 1, 2, 3]]), r"must be \(4,\) integers, not \(1, 4\)"),
        (torch.tensor(1), r"must be \(4,\) integers, not \(\)"),
    ],
)
def test_invalid_positions_are_refused(name: str, positions: Tensor, message: str) -> None:
    good = torch.tensor([0, 1, 2, 3])
    given = (positions, good) if name == "start" else (good, positions)
    with pytest.raises(ValueError, match=name + ".*" + message.removeprefix("_")):
        losses.spans(torch.randn(4, 6), torch.randn(4, 6), *given, padding_of(WHOLE))
