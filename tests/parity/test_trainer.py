"""transformers' Trainer and accelerate's loop on our heads, beside the same on transformers' own.

The same weights and data, no dropout: the losses of ten steps agree. In bf16 both round, each in
its own order, so ours may differ from theirs by as much as theirs in bf16 differs from fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertTokenizerFast, DataCollatorWithPadding, TrainingArguments
from transformers.trainer_utils import set_seed

from nomicbert.integrations import transformers as integration
from tests.parity.report import held, seen, within
from tests.support.heads import OURS, build_head, theirs

STEPS, BATCH, RATE = 10, 4, 1e-3
LOSS = 2e-4  # of each step, relative, in fp32
HALF = 2  # in bf16: of transformers' own difference between bf16 and fp32
FAMILIES = ("Bert", "NomicBert")
CLASSES = 3
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """accelerate keeps one state per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(folder: Path, family: str, task: str, **settings: Any) -> Path:
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    count = 2 if task == "QuestionAnswering" else CLASSES
    return build_head(folder, family, task, **{"num_labels": count} | drops | settings)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(115))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=64)


def rows(tokenizer: Any, task: str, count: int = 12) -> Rows:
    """Texts of 3 to 12 words; the labels can be learned."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        length = int(torch.randint(3, 13, (1,), generator=generator))
        words = torch.randint(0, 115, (length,), generator=generator).tolist()
        row: dict[str, Any] = dict(tokenizer(" ".join(f"w{w}" for w in words)))
        ids = row["input_ids"]
        if task == "SequenceClassification":
            row["labels"] = words[0] % CLASSES
        elif task == "TokenClassification":
            row["labels"] = [-100, *(w % CLASSES for w in words), -100]
        elif task == "QuestionAnswering":
            row |= {"start_positions": 1, "end_positions": length}
        else:
            row["labels"] = [i if place % 3 == 1 else -100 for place, i in enumerate(ids)]
            row["input_ids"] = [4 if place % 3 == 1 else i for place, i in enumerate(ids)]
        found.append(row)
    return found


def collator(tokenizer: Any, task: str) -> Any:
    if task in ("TokenClassification", "MaskedLM"):
        return transformers.DataCollatorForTokenClassification(tokenizer)
    if task == "QuestionAnswering":  # without padding, which transformers' softmax counts
        return lambda batch: DataCollatorWithPadding(tokenizer, "max_length", 5)(
            [{k: v[:5] if isinstance(v, list) else min(v, 4) for k, v in r.items()} for r in batch]
        )
    return DataCollatorWithPadding(tokenizer)


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    said: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "logging_steps": 1,
        "save_steps": 5,
        "use_cpu": True,
        "report_to": [],
        "seed": 3,
        "disable_tqdm": True,
    }
    return TrainingArguments(**said | more)


def trainer_of(
    model: nn.Module,
    folder: Path,
    tokenizer: Any,
    task: str,
    kind: type[transformers.Trainer] = transformers.Trainer,
    **more: Any,
) -> Any:
    AcceleratorState._reset_state(reset_partial_state=True)  # of another precision
    own = {name: more.pop(name) for name in ("compute_metrics",) if name in more}
    return kind(
        model=model,
        args=arguments(folder, **more),
        train_dataset=rows(tokenizer, task),
        eval_dataset=rows(tokenizer, task, 6),
        data_collator=collator(tokenizer, task),
        processing_class=tokenizer,
        **own,
    )


def losses(trainer: Any, key: str = "loss") -> Tensor:
    return torch.tensor([entry[key] for entry in trainer.state.log_history if key in entry])


def both(folder: Path, task: str) -> tuple[nn.Module, nn.Module]:
    return OURS[task].from_pretrained(folder), theirs(folder)


def agree(found: Tensor, wanted: Tensor, what: str = "loss of each step, relative") -> None:
    assert found.shape == wanted.shape
    held(what, found / wanted, torch.ones_like(wanted), LOSS)


@pytest.mark.parametrize("task", OURS)
def test_ten_steps(family: str, task: str, tokenizer: Any, tmp_path: Path) -> None:
    """Plain Trainer, with an evaluation in the middle."""
    folder = build(tmp_path / "m", family, task)
    if family == "NomicBert" and task == "QuestionAnswering":
        pytest.skip("transformers has no such head")
    found = []
    for name, model in zip(("ours", "theirs"), both(folder, task), strict=True):
        said: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 5}
        if task == "QuestionAnswering":  # whose loss is soon near 0, where rounding counts
            said["learning_rate"] = RATE / 4
        trainer = trainer_of(model, tmp_path / name, tokenizer, task, **said)
        trainer.train()
        found.append((losses(trainer), losses(trainer, "eval_loss")))
        assert trainer.label_names == (
            ["start_positions", "end_positions"] if task == "QuestionAnswering" else ["labels"]
        )
        assert model.config.use_cache is False
    (mine, mine_after), (truth, after) = found
    assert len(truth) == STEPS
    assert truth.min() < 0.8 * truth[0]
    agree(mine, truth)
    agree(mine_after, after, "loss of an evaluation, relative")


def test_a_fault_is_seen(family: str, tokenizer: Any, tmp_path: Path) -> None:
    """The fault: one layer is not trained."""
    task = "SequenceClassification"
    mine, judge = both(build(tmp_path / "m", family, task), task)
    mine.encoder.layers[1].requires_grad_(False)
    found = []
    for name, model in (("a", mine), ("b", judge)):
        trainer = trainer_of(model, tmp_path / name, tokenizer, task, save_strategy="no")
        trainer.train()
        found.append(losses(trainer))
    seen(found[0] / found[1], torch.ones(STEPS), LOSS)


@pytest.mark.parametrize("task", ["SequenceClassification", "MaskedLM"])
def test_ten_steps_in_bf16(family: str, task: str, tokenizer: Any, tmp_path: Path) -> None:
    folder = build(tmp_path / "m", family, task)
    found = {}
    for who, bf16 in (("ours", True), ("theirs", True), ("theirs", False)):
        model = both(folder, task)[who == "theirs"]
        trainer = trainer_of(model, tmp_path / who, tokenizer, task, bf16=bf16, save_strategy="no")
        trainer.train()
        found[who, bf16] = losses(trainer)
        assert next(model.parameters()).dtype == torch.float32
    truth = found["theirs", False]
    usual = ((found["theirs", True] - truth) / truth).abs()
    error = ((found["ours", True] - truth) / truth).abs()
    assert min(usual.max(), error.max()) > LOSS  # bf16 was on
    within("loss in bf16, of transformers' own error", (error.max() / usual.max()).item(), HALF)


@pytest.mark.parametrize("task", ["SequenceClassification", "MaskedLM"])
@pytest.mark.parametrize("kind", [transformers.Trainer, integration.Trainer])
def test_resuming(
    kind: type[transformers.Trainer], family: str, task: str, tokenizer: Any, tmp_path: Path
) -> None:
    """From a checkpoint in the middle, the rest is the same to the bit."""
    folder = build(tmp_path / "m", family, task)
    whole = trainer_of(OURS[task].from_pretrained(folder), tmp_path / "out", tokenizer, task, kind)
    whole.train()
    other = build(tmp_path / "other", family, task, seed=5)
    again = trainer_of(OURS[task].from_pretrained(other), tmp_path / "again", tokenizer, task, kind)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert torch.equal(losses(again)[-5:], losses(whole)[-5:])
    wanted = whole.model.state_dict()
    assert all(torch.equal(t, wanted[name]) for name, t in again.model.state_dict().items())


def right(predictions: Any, labels: Any) -> float:
    """The share of right answers; hidden states come behind the logits."""
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    return float((logits.argmax(-1) == labels).mean())


def test_predictions_and_metrics(family: str, tokenizer: Any, tmp_path: Path) -> None:
    task = "SequenceClassification"
    folder = build(tmp_path / "m", family, task)
    found = []
    for name, model in zip(("ours", "theirs"), both(folder, task), strict=True):
        trainer = trainer_of(
            model, tmp_path / name, tokenizer, task,
            compute_metrics=lambda p: {"right": right(p.predictions, p.label_ids)},
        )  # fmt: skip
        data = rows(tokenizer, task, 7)
        with_labels = trainer.predict(data)
        without = trainer.predict([{k: v for k, v in r.items() if k != "labels"} for r in data])
        assert isinstance(with_labels.predictions, np.ndarray)
        assert with_labels.predictions.shape == without.predictions.shape == (7, CLASSES)
        assert without.label_ids is None
        model.config.output_hidden_states = True
        more = trainer.predict(data)
        assert [type(x) for x in more.predictions] == [np.ndarray, tuple]
        ignored = trainer.predict(data, ignore_keys=["hidden_states"]).predictions
        assert np.array_equal(ignored, with_labels.predictions)
        model.config.output_hidden_states = False
        found.append((with_labels, without.predictions, trainer.evaluate()))
    (mine, alone, metrics), (truth, theirs_alone, wanted) = found
    assert np.abs(mine.predictions - truth.predictions).max() <= 1e-4
    assert np.abs(alone - theirs_alone).max() <= 1e-4
    assert np.array_equal(mine.label_ids, truth.label_ids)
    assert mine.metrics["test_right"] == truth.metrics["test_right"]
    assert abs(metrics["eval_loss"] / wanted["eval_loss"] - 1) <= LOSS


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("SequenceClassification", {"label_smoothing_factor": 0.2}),
        ("TokenClassification", {"label_smoothing_factor": 0.2}),
        ("MaskedLM", {"activation_checkpointing": True}),
    ],
)
def test_options(
    task: str, said: dict[str, Any], family: str, tokenizer: Any, tmp_path: Path
) -> None:
    """Smoothed labels; layers that are computed again going back."""
    found = []
    for name, model in zip(
        ("ours", "theirs"), both(build(tmp_path / "m", family, task), task), strict=True
    ):
        trainer = trainer_of(model, tmp_path / name, tokenizer, task, save_strategy="no", **said)
        trainer.train()
        found.append(losses(trainer))
        if "activation_checkpointing" in said:
            assert model.is_activation_checkpointing
    assert len(found[1]) == STEPS
    agree(*found)


@pytest.mark.parametrize("task", ["MaskedLM", "TokenClassification", "SequenceClassification"])
def test_accumulated_gradients(task: str, family: str, tokenizer: Any, tmp_path: Path) -> None:
    """Three batches of four are one of twelve, though they have different numbers of labels.

    The judge takes the twelve at once: BertForMaskedLM of transformers 5.23 adds up the means of
    accumulated batches.
    """
    found, folder = [], build(tmp_path / "m", family, task)
    sizes = (
        {"gradient_accumulation_steps": 3},
        {"per_device_train_batch_size": 3 * BATCH},
    )
    for model, said in zip(both(folder, task), sizes, strict=True):
        trainer = trainer_of(
            model, tmp_path / "out", tokenizer, task, save_strategy="no", max_steps=5, **said
        )
        trainer.train()
        found.append(losses(trainer))
    assert len(found[1]) == 5
    agree(*found)


def steps(model: nn.Module, accelerator: Accelerator, loader: Any, count: int) -> list[float]:
    """A loop as accelerate's documentation has it; losses, with AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    found = []
    while len(found) < count:
        for batch in loader:
            if len(found) == count:
                break
            output = model(**batch)
            assert output.logits.dtype == torch.float32
            assert isinstance(output, dict)
            accelerator.backward(output["loss"])
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(accelerator.gather(output.loss.detach()).item())
    return found


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
def test_accelerate(task: str, precision: str, family: str, tokenizer: Any, tmp_path: Path) -> None:
    """In bf16, errors are compared over three starts: those of ten steps vary too much."""
    data = rows(tokenizer, task)

    def run(model: nn.Module, precision: str) -> tuple[Tensor, Accelerator]:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        loader = DataLoader(data, BATCH, collate_fn=collator(tokenizer, task))
        return torch.tensor(steps(model, accelerator, loader, STEPS)), accelerator

    errors, usual = [], []
    for seed in range(3 if precision == "bf16" else 1):
        folder = build(tmp_path / f"m{seed}", family, task, seed=seed)
        mine, judge = both(folder, task)
        truth = run(judge, "no")[0]
        found, accelerator = run(mine, precision)
        if precision == "no":
            agree(found, truth)
        else:
            errors.append((found - truth) / truth)
            usual.append((run(theirs(folder), precision)[0] - truth) / truth)
    if errors:
        ours, reference = (torch.stack(each).square().mean().sqrt() for each in (errors, usual))
        assert min(ours, reference) > LOSS
        within("loss in bf16, of transformers' own error", (ours / reference).item(), HALF)
    prepared = accelerator._models[-1]
    assert accelerator.unwrap_model(prepared) is mine
    accelerator.save_model(prepared, tmp_path / "saved")
    again = OURS[task].from_pretrained(tmp_path / "saved", config=folder)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in mine.state_dict().items())


def test_accelerate_state(family: str, tokenizer: Any, tmp_path: Path) -> None:
    """save_state in the middle, load_state into a model with other weights."""
    task = "SequenceClassification"
    folders = [build(tmp_path / str(i), family, task, seed=i) for i in range(2)]
    batch = collator(tokenizer, task)(rows(tokenizer, task, 4))

    def prepared(folder: Path) -> tuple[Accelerator, Any, Any]:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        model = OURS[task].from_pretrained(folder).train()
        return accelerator, *accelerator.prepare(model, torch.optim.AdamW(model.parameters(), RATE))

    def some(accelerator: Accelerator, model: Any, optimizer: Any) -> list[float]:
        found = []
        for _ in range(5):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    first = prepared(folders[0])
    some(*first)
    first[0].save_state(str(tmp_path / "state"))
    wanted = some(*first)
    second = prepared(folders[1])
    second[0].load_state(str(tmp_path / "state"))
    assert some(*second) == wanted


@pytest.mark.parametrize("task", ["SequenceClassification", "MaskedLM"])
def test_fp16_on_a_cpu(task: str, family: str, tokenizer: Any, tmp_path: Path) -> None:
    """accelerate refuses it there; autocast with a gradient scaler is what it does on a GPU."""
    folder = build(tmp_path / "m", family, task)
    batch = collator(tokenizer, task)(rows(tokenizer, task, 4))
    found = []
    for model in both(folder, task):
        set_seed(0)
        optimizer = torch.optim.SGD(model.train().parameters(), 0.05)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(3):
            with torch.autocast("cpu", torch.float16):
                output = model(**batch)
            scaler.scale(output.loss.float()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            found.append(output.loss.item())
        assert output.logits.dtype == torch.float16
        assert all(p.isfinite().all() for p in model.parameters())
    within(
        "loss in fp16", max(abs(a / b - 1) for a, b in zip(found[:3], found[3:], strict=True)), 5e-3
    )
