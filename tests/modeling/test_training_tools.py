"""Methods that tools of training call, under transformers' names: against transformers' models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nomicbert import NomicBert, NomicBertForMaskedLM
from nomicbert.errors import CheckpointError
from nomicbert.loading.keywords import SaveKeywords
from nomicbert.modeling import packed_encoder
from tests.parity.bounds import HIDDEN
from tests.support.checkpoints import build_checkpoint, edit_config, read_tensors
from tests.support.heads import NATIVE, OURS, build_head, change_tensors, theirs

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 3]])


def labels_of(task: str) -> dict[str, Tensor]:
    if task == "QuestionAnswering":
        return {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([2, 3])}
    return {"labels": torch.tensor([0, 1]) if task == "SequenceClassification" else IDS % 2}


@pytest.mark.parametrize(("family", "task"), NATIVE)
def test_counts(family: str, task: str, tmp_path: Path) -> None:
    folder = build_head(tmp_path, family, task)
    model, judge = OURS[task].from_pretrained(folder), theirs(folder)
    for one in (model, judge):
        for name, parameter in one.named_parameters():
            parameter.requires_grad_("word" not in name and "qa_outputs" not in name)
    for trainable in (True, False):
        for without in (True, False):
            said = {"only_trainable": trainable, "exclude_embeddings": without}
            assert model.num_parameters(**said) == judge.num_parameters(**said)
    assert model.num_parameters() > model.num_parameters(exclude_embeddings=True)
    assert model.get_memory_footprint() == model.get_memory_footprint(return_buffers=False)
    assert model.get_memory_footprint() == judge.get_memory_footprint(return_buffers=False)
    assert model.half().get_memory_footprint() == judge.get_memory_footprint(False) / 2
    assert model.base_model is model.encoder
    assert model.encoder.base_model is model.encoder
    assert model.can_generate() == judge.can_generate() is False
    assert model.main_input_name == judge.main_input_name


@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_output_embeddings(family: str, tmp_path: Path) -> None:
    folder = build_head(tmp_path, family, "MaskedLM")
    model, judge = NomicBertForMaskedLM.from_pretrained(folder), theirs(folder)
    found, wanted = model.get_output_embeddings(), judge.get_output_embeddings()
    assert found.weight is model.get_input_embeddings().weight
    assert found.bias is model.decoder_bias
    assert torch.equal(found.weight, wanted.weight)
    assert torch.equal(found.bias, wanted.bias)
    x = torch.randn(3, 64)
    assert torch.allclose(found(x), wanted(x), atol=1e-6)

    generator = torch.Generator().manual_seed(3)
    other = nn.Linear(64, 120)
    with torch.no_grad():
        other.weight.normal_(generator=generator)
        other.bias.normal_(generator=generator)
    model.set_output_embeddings(other)
    judge.set_output_embeddings(other)
    assert model.get_output_embeddings().weight is other.weight
    assert dict(model.named_parameters())["decoder"] is other.weight
    with torch.no_grad():
        assert (model(IDS).logits - judge(IDS).logits).abs().max() <= HIDDEN * 10
    model.tie_weights()
    assert model.decoder is other.weight
    assert model.config.tie_word_embeddings is False
    model.set_output_embeddings(found)  # which has the table of the words
    assert model.decoder is None
    assert model.config.tie_word_embeddings is True
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.decoder_bias is found.bias
    with pytest.raises(ValueError, match=r"must be \(120, 64\) with a bias, not \(121, 64\) with"):
        model.set_output_embeddings(nn.Linear(64, 121))
    with pytest.raises(ValueError, match=r"with a bias, not .* without one; resize_token"):
        model.set_output_embeddings(nn.Linear(64, 120, bias=False))
    with pytest.raises(TypeError, match=r"must be an nn\.Linear, not a Embedding"):
        model.set_output_embeddings(nn.Embedding(120, 64))


def test_an_untied_decoder_stays_untied(tmp_path: Path) -> None:
    folder = build_head(tmp_path, "Bert", "MaskedLM", tie_word_embeddings=False)
    change_tensors(folder, lambda t: t | {"cls.predictions.decoder.weight": torch.randn(120, 64)})
    model = NomicBertForMaskedLM.from_pretrained(folder)
    own = model.decoder
    model.tie_weights()
    assert model.decoder is own is not None
    assert model.get_output_embeddings().weight is own


@pytest.mark.parametrize("said", [True, None])
@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_a_decoder_that_was_loaded_is_not_dropped(
    family: str, said: bool | None, tmp_path: Path
) -> None:
    """Also where config.json is silent or says that it is tied: Trainer calls `tie_weights`."""
    folder = build_head(tmp_path, family, "MaskedLM")
    edit_config(folder, tie_word_embeddings=... if said is None else said)
    change_tensors(folder, lambda t: t | {"cls.predictions.decoder.weight": torch.randn(120, 64)})
    model = NomicBertForMaskedLM.from_pretrained(folder)
    logits, own = model(IDS).logits, model.decoder
    model.tie_weights()
    assert model.decoder is own is not None
    assert torch.equal(model(IDS).logits, logits)
    model.config.write(tie_word_embeddings=True)
    model.tie_weights()
    assert model.decoder is None


def test_heads_without_words_have_no_output_embeddings(tmp_path: Path) -> None:
    folder = build_head(tmp_path, "Bert", "SequenceClassification")
    for model in (
        OURS["SequenceClassification"].from_pretrained(folder),
        NomicBert.from_pretrained(folder),
    ):
        assert model.get_output_embeddings() is None
        model.tie_weights()
        with pytest.raises(TypeError, match=f"{type(model).__name__} has no layer that gives a"):
            model.set_output_embeddings(nn.Linear(64, 120))


@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_input_gradients(family: str, tmp_path: Path) -> None:
    """With all parameters frozen, what follows the embeddings has a gradient."""
    folder = build_head(tmp_path, family, "SequenceClassification")
    model = OURS["SequenceClassification"].from_pretrained(folder).requires_grad_(False)
    assert not model(IDS).logits.requires_grad
    with torch.no_grad():
        plain = model(IDS).logits
    model.enable_input_require_grads()
    model.enable_input_require_grads()  # once is enough
    out = model(IDS, output_hidden_states=True)
    assert out.logits.requires_grad
    assert (out.logits - plain).abs().max() <= HIDDEN
    model.disable_input_require_grads()
    assert not model(IDS).logits.requires_grad
    assert not model.get_input_embeddings()._forward_hooks
    model.disable_input_require_grads()


@pytest.mark.parametrize(
    ("every", "wanted"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])]
)
def test_which_layers_are_computed_again(
    every: int, wanted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_head(tmp_path, "NomicBert", "MaskedLM", num_hidden_layers=5)
    model = OURS["MaskedLM"].from_pretrained(folder).train()
    seen: list[int] = []
    real = packed_encoder.checkpoint

    def noted(layer: nn.Module, *inputs: Any, **keywords: Any) -> Any:
        seen.append([*model.encoder.layers].index(layer))
        return real(layer, *inputs, **keywords)

    monkeypatch.setattr(packed_encoder, "checkpoint", noted)
    gradients = []
    for enable in (
        None,
        model.activation_checkpointing_enable,
        model.gradient_checkpointing_enable,
    ):
        if enable is not None:
            enable({"use_reentrant": True}, every_n_layers=every)
        assert model.is_activation_checkpointing == (enable is not None)
        assert model.is_gradient_checkpointing == (enable is not None)
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        assert seen == ([] if enable is None else wanted)
        seen.clear()
        model.gradient_checkpointing_disable()
    for other in gradients[1:]:
        assert all(
            torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients[0], other, strict=True)
        )
    assert not model.is_activation_checkpointing
    model.activation_checkpointing_enable()
    model.eval()(IDS)
    assert not seen
    model.activation_checkpointing_disable()
    assert not model.encoder.gradient_checkpointing


def test_other_ways_of_checkpointing_are_refused(tmp_path: Path) -> None:
    model = OURS["MaskedLM"].from_pretrained(build_head(tmp_path, "Bert", "MaskedLM"))
    with pytest.raises(ValueError, match="offload=True is not supported"):
        model.activation_checkpointing_enable(offload=True)
    with pytest.raises(ValueError, match="every_n_layers must be at least 1, not 0"):
        model.activation_checkpointing_enable(every_n_layers=0)
    with pytest.raises(TypeError, match=r"every_n_layers must be an integer, not 1\.5"):
        model.gradient_checkpointing_enable(every_n_layers=1.5)
    with pytest.raises(TypeError, match="takes use_reentrant only, not 'preserve_rng_state'"):
        model.gradient_checkpointing_enable({"preserve_rng_state": False})
    assert not model.is_activation_checkpointing


@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
@pytest.mark.parametrize("task", ["MaskedLM", "SequenceClassification", "TokenClassification"])
def test_labels_of_several_batches(family: str, task: str, tmp_path: Path) -> None:
    """The parts of two batches add up to the mean over all labels, one of them without any."""
    folder = build_head(tmp_path, family, task)
    model = OURS[task].from_pretrained(folder)
    with torch.no_grad():
        if task == "SequenceClassification":
            labels = torch.tensor([0, 1])
        else:
            labels = torch.tensor([[1, 0, -100, 1], [-100, -100, 1, -100]])
        count = (labels != -100).sum()
        whole = model(IDS, labels=labels).loss
        parts = [
            model(IDS[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=items).loss
            for i, items in enumerate((count, int(count)))
        ]
        assert abs(sum(parts) - whole) <= 1e-6
        assert parts[0] != whole
        none = torch.full_like(labels, -100)
        assert model(IDS, labels=none, num_items_in_batch=count).loss == 0
        if task == "SequenceClassification":
            for problem, wanted in (
                ("regression", torch.rand(2, 2)),
                ("multi_label_classification", torch.tensor([[1.0, 0.0], [1.0, 1.0]])),
            ):
                model.config.problem_type = problem
                whole = model(IDS, labels=wanted).loss
                half = model(IDS[:1], labels=wanted[:1], num_items_in_batch=4).loss
                rest = model(IDS[1:], labels=wanted[1:], num_items_in_batch=4).loss
                assert abs(half + rest - whole) <= 1e-6
    assert model.accepts_loss_kwargs
    assert not model.encoder.accepts_loss_kwargs


@pytest.mark.parametrize(("family", "task"), NATIVE)
def test_state_dicts_in_the_layout_of_the_hub(family: str, task: str, tmp_path: Path) -> None:
    """As Trainer loads them when it resumes; a state dict of ours is torch's business."""
    folder = build_head(tmp_path / "a", family, task)
    wanted = OURS[task].from_pretrained(folder).state_dict()
    other = OURS[task].from_pretrained(build_head(tmp_path / "b", family, task, seed=1))
    assert not torch.equal(next(iter(other.state_dict().values())), next(iter(wanted.values())))
    for strict in (True, False):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other.load_state_dict(load_file(folder / "model.safetensors"), strict)
        assert all(torch.equal(other.state_dict()[name], wanted[name]) for name in wanted)
    tensors = load_file(folder / "model.safetensors")
    if family == "Bert":  # where transformers has the names of the hub inside, too
        other.load_state_dict(theirs(folder).state_dict())
    lacking = {n: t for n, t in tensors.items() if "layer.1." not in n and "layers.1." not in n}
    for strict in (True, False):  # never a part of a layout
        with pytest.raises(CheckpointError, match="missing"):
            other.load_state_dict(lacking, strict)
    part = {name: wanted[name] for name in list(wanted)[:3]}
    assert len(other.load_state_dict(part, strict=False).missing_keys) == len(wanted) - 3
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(part)


def test_an_encoder_loads_the_layout_of_the_hub_too(tmp_path: Path) -> None:
    for variant in ("nomic-v2-moe", "e5"):
        folder = build_checkpoint(tmp_path / variant, variant, num_hidden_layers=2)
        model = NomicBert.from_pretrained(folder)
        wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        before = model(IDS)[0]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert not torch.equal(model(IDS)[0], before)
        model.load_state_dict(read_tensors(folder))
        assert all(torch.equal(model.state_dict()[name], wanted[name]) for name in wanted)
        assert torch.equal(model(IDS)[0], before)


@pytest.mark.parametrize("rows", [131, 100])
@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_a_vocabulary_of_another_size_is_refused(family: str, rows: int, tmp_path: Path) -> None:
    """The old size is not that of a table which lacks rows of padding."""
    folder = build_head(tmp_path, family, "MaskedLM")
    model = NomicBertForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(rows)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"is \(120, 64\), wanted \({rows}, 64\)"):
        model.load_state_dict(load_file(folder / "model.safetensors"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("names", ["ours", "the hub's"])
def test_saving_a_state_dict(names: str, tmp_path: Path) -> None:
    folder = build_head(tmp_path / "a", "NomicBert", "TokenClassification")
    other = build_head(tmp_path / "b", "NomicBert", "TokenClassification", seed=1)
    cls = OURS["TokenClassification"]
    model, wanted = cls.from_pretrained(folder), cls.from_pretrained(other).state_dict()
    given = wanted if names == "ours" else load_file(other / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved", state_dict=given)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    truth = load_file(other / "model.safetensors")
    assert saved.keys() == truth.keys()
    assert all(torch.equal(saved[name], truth[name]) for name in truth)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    with pytest.raises(ValueError, match=r"state_dict lacks classifier\.bias"):
        model.save_pretrained(
            tmp_path / "saved", state_dict={n: t for n, t in wanted.items() if "bias" not in n}
        )


def test_keywords_of_saving(tmp_path: Path) -> None:
    folder = build_head(tmp_path / "a", "Bert", "MaskedLM")
    for model in (OURS["MaskedLM"].from_pretrained(folder), NomicBert.from_pretrained(folder)):
        to, size = tmp_path / type(model).__name__, model.get_memory_footprint()
        model.save_pretrained(to / "not", is_main_process=False)
        assert not (to / "not").exists()
        accepted = {"safe_serialization": True, "push_to_hub": False, "variant": None}
        assert accepted.keys() | {"max_shard_size"} == SaveKeywords.__annotations__.keys()
        for limit in ("5GB", "50 GB", "1GiB", "200MB", "900kb", size, str(size)):
            model.save_pretrained(to, max_shard_size=limit, **accepted)
            written = {"README.md", "config.json", "model.safetensors"}
            assert {p.name for p in to.iterdir()} == written
        for name, value, problem in (
            ("safe_serialization", False, "safetensors are written"),
            ("push_to_hub", True, "save, then upload the folder"),
            ("variant", "fp16", "give a folder of its own"),
            ("max_shard_size", "1KB", "one file is written"),
            ("max_shard_size", size - 1, "one file is written"),
            ("max_shard_size", "much", "must be a size as '5GB'"),
        ):
            with pytest.raises(ValueError, match=f"^{name}.* {problem}"):
                model.save_pretrained(to / "not", **{name: value})
        with pytest.raises(TypeError, match="has no keyword 'state_dct': did you mean 'state_d"):
            model.save_pretrained(to / "not", state_dct={})
        assert not (to / "not").exists()
