"""Trainer of the integration: its checkpoints load everywhere, and so does the best one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import TrainingArguments

from nomicbert import NomicBertForMaskedLM, NomicBertForSequenceClassification
from nomicbert.errors import ConfigError
from nomicbert.integrations.transformers import Trainer
from tests.support.checkpoints import read_config
from tests.support.heads import OURS, build_head, theirs

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 3]])
ROWS = [{"input_ids": IDS[i % 2], "labels": torch.tensor(i % 2)} for i in range(6)]
WORDS = [{"input_ids": IDS[i % 2], "labels": IDS[i % 2]} for i in range(6)]
# peft reads an attribute that transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """accelerate keeps one state per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer_of(
    model: torch.nn.Module,
    folder: Path,
    kind: type[transformers.Trainer] = Trainer,
    rows: Any = ROWS,
    **more: Any,
) -> Any:
    said: dict[str, Any] = {
        "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 1,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **said | more)
    return kind(model=model, args=args, train_dataset=rows, eval_dataset=rows)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    found: Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize("task", ["SequenceClassification", "MaskedLM"])
@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_checkpoints_load_everywhere(family: str, task: str, tmp_path: Path) -> None:
    model = OURS[task].from_pretrained(build_head(tmp_path / "m", family, task))
    before = logits(model)
    rows = WORDS if task == "MaskedLM" else ROWS
    trainer = trainer_of(model, tmp_path / "out", rows=rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    after = logits(model)
    assert (after - before).abs().max() > 1e-2
    for folder in (tmp_path / "final", tmp_path / "out" / "checkpoint-4"):
        assert torch.equal(logits(OURS[task].from_pretrained(folder)), after)
        assert (logits(theirs(folder)) - after).abs().max() <= 1e-4
        assert (folder / "training_args.bin").is_file()
        assert read_config(folder)["use_cache"] is False
    middle = logits(OURS[task].from_pretrained(tmp_path / "out" / "checkpoint-2"))
    assert (middle - after).abs().max() > 1e-3


def test_the_best_model_comes_back(tmp_path: Path) -> None:
    """With a rate at which the loss grows, the first checkpoint is the best."""
    folder = build_head(tmp_path / "m", "Bert", "SequenceClassification")
    model = NomicBertForSequenceClassification.from_pretrained(folder)
    said = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = trainer_of(
        model, tmp_path / "out", metric_for_best_model="loss", greater_is_better=True, **said
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-2"
    assert torch.equal(
        logits(model), logits(NomicBertForSequenceClassification.from_pretrained(best))
    )
    last = NomicBertForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint-4")
    assert (logits(last) - logits(model)).abs().max() > 1e-3


def test_checkpoints_of_the_plain_trainer(tmp_path: Path) -> None:
    """They hold a state dict only: the configuration is that of the model that was trained."""
    folder = build_head(tmp_path / "m", "NomicBert", "SequenceClassification")
    model = NomicBertForSequenceClassification.from_pretrained(folder)
    trainer_of(model, tmp_path / "out", transformers.Trainer).train()
    saved = tmp_path / "out" / "checkpoint-4"
    assert not (saved / "config.json").exists()
    with pytest.raises(ConfigError, match=r"config.json is missing, though weights are there.*Tra"):
        NomicBertForSequenceClassification.from_pretrained(saved)
    for config in (folder, model.config, theirs(folder).config):
        again = NomicBertForSequenceClassification.from_pretrained(saved, config=config)
        assert torch.equal(logits(again), logits(model))


def test_adapters_are_saved_as_by_the_plain_trainer(tmp_path: Path) -> None:
    folder = build_head(tmp_path / "m", "Bert", "MaskedLM")
    model = get_peft_model(
        NomicBertForMaskedLM.from_pretrained(folder),
        LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False),
    )
    trainer = trainer_of(model, tmp_path / "out", rows=WORDS, label_names=["labels"])
    trainer.train()
    names = {path.name for path in (tmp_path / "out" / "checkpoint-4").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert "model.safetensors" not in names
