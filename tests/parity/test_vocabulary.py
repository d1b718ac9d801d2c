"""Resized vocabularies and the padding row, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from nomicbert import NomicBert, NomicBertForMaskedLM
from nomicbert.errors import ConfigError
from nomicbert.modeling.vocabulary import NARROW
from tests.ops.cases import INTERPRETS
from tests.parity.bounds import BACKENDS, GRADIENT, HIDDEN
from tests.parity.report import held, within
from tests.parity.support import Case
from tests.support.checkpoints import build_checkpoint, edit_config, read_config
from tests.support.heads import build_head, change_tensors, theirs

FAMILIES = ["Bert", "NomicBert"]
WORDS, ADDED = 120, 2000
DECODER, BIAS = "cls.predictions.decoder.", "cls.predictions.bias"
IDS = torch.tensor([[2, 0, 9, 30, 0], [5, 8, 0, 12, 6]])


def untied(folder: Path) -> Path:
    """A decoder of its own, far from the words."""
    table = 0.5 + 0.3 * torch.randn(WORDS, 64, generator=torch.Generator().manual_seed(5))
    change_tensors(
        folder,
        lambda old: old | {DECODER + "weight": table, DECODER + "bias": old[BIAS].clone()},
    )
    edit_config(folder, tie_word_embeddings=False)
    return folder


def tables(model: nn.Module) -> dict[str, Tensor]:
    """Words, decoder and its bias of either model."""
    words = model.get_input_embeddings().weight
    if isinstance(model, NomicBertForMaskedLM):
        decoder = words if model.decoder is None else model.decoder
        return {"words": words, "decoder": decoder, "bias": model.decoder_bias}
    out = model.get_output_embeddings()
    return {"words": words, "decoder": out.weight, "bias": out.bias}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_statistics_of_new_rows(family: str, tied: bool, case: Case) -> None:
    """Mean and covariance of many drawn rows; a bias is the mean, or 0 if the decoder is tied."""
    folder = build_head(case.folder / "m", family, "MaskedLM", seed=case.seed)
    folder = folder if tied else untied(folder)
    before = {name: t.clone() for name, t in tables(theirs(folder)).items()}
    for mean_resizing in (True, False):
        mine, judge = NomicBertForMaskedLM.from_pretrained(folder), theirs(folder)
        for model in (mine, judge):
            model.resize_token_embeddings(WORDS + ADDED, mean_resizing=mean_resizing)
        found, wanted = tables(mine), tables(judge)
        for name, old in before.items():
            assert found[name].shape == wanted[name].shape == (WORDS + ADDED, *old.shape[1:])
            assert torch.equal(found[name][:WORDS], old)
            a, b = found[name][WORDS:].double(), wanted[name][WORDS:].double()
            if name == "bias":
                held("bias", a.float(), b.float(), 1e-7 if mean_resizing else 0)
                continue
            # five standard errors of a mean, and twice that for two samples
            mean, noise = old.double().mean(0), old.double().std(0)
            if not mean_resizing:
                mean, noise = torch.zeros_like(mean), torch.full_like(noise, 0.02)
            else:
                noise = noise * NARROW**0.5
                assert (a.std(0) < 1e-3 * old.std(0)).all()
            # float32 rounds what is added to the mean
            limit = 10 * noise * ADDED**-0.5 + 1e-7 * mean.abs()
            assert ((a.mean(0) - b.mean(0)).abs() <= limit).all()
            assert ((a.mean(0) - mean).abs() <= limit).all()
            both = [x.T.cov() for x in (a, b)]
            within(
                "covariance, relative", ((both[0] - both[1]).norm() / both[1].norm()).item(), 0.5
            )


@torch.no_grad()
def test_covariance_is_that_of_the_old_rows() -> None:
    """More draws than a model has words, so that the noise shows; also of fewer rows than columns,
    whose covariance is singular."""
    from nomicbert.modeling.vocabulary import around_mean

    generator = torch.Generator().manual_seed(3)
    for rows in (500, 5):
        old = torch.randn(rows, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
        drawn = around_mean(old - old.mean(0), 40_000).double()
        wanted = (old.double().T.cov(correction=0)) * NARROW
        assert ((drawn.T.cov() - wanted).norm() / wanted.norm()) <= 0.05


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sizes(family: str, case: Case) -> None:
    folder = build_head(case.folder / "m", family, "MaskedLM", seed=case.seed)
    ids = torch.tensor([[5, 6, 7, 8]])
    mine, judge = NomicBertForMaskedLM.from_pretrained(folder), theirs(folder)
    for given in (
        (),
        (None, None),
        (None, 64),
        (130,),
        (130, 8),
        (100, None, False),
        (100, 7),
        (None, 1),
    ):
        for model in (mine, judge):
            table = model.get_input_embeddings()
            assert model.resize_token_embeddings(*given) is table
            assert model.get_input_embeddings() is table
        words = [
            table.num_embeddings for table in (m.get_input_embeddings() for m in (mine, judge))
        ]
        assert words[0] == words[1] == mine.config.vocab_size == judge.config.vocab_size
        found, wanted = mine(ids).logits, judge(ids).logits
        assert found.shape == wanted.shape
        held("logits of old words", found[..., :100], wanted[..., :100], HIDDEN)
    mine.save_pretrained(case.folder / "again")
    assert read_config(case.folder / "again")["vocab_size"] == words[0]
    again = NomicBertForMaskedLM.from_pretrained(case.folder / "again")
    assert torch.equal(again(ids).logits, found)


def test_mistakes(case: Case) -> None:
    model = NomicBert.from_pretrained(case.build("nomic-v1.5"))
    before = model.get_input_embeddings().weight
    for wrong in (0, -8):
        with pytest.raises(ValueError, match=f"pad_to_multiple_of must be at least 1, not {wrong}"):
            model.resize_token_embeddings(50, pad_to_multiple_of=wrong)
    with pytest.raises(TypeError, match=r"pad_to_multiple_of must be an integer, not 2\.5"):
        model.resize_token_embeddings(50, pad_to_multiple_of=2.5)
    assert model.get_input_embeddings().weight is before
    model.embeddings.word = nn.Sequential(model.embeddings.word)
    with pytest.raises(TypeError, match=r"only an nn.Embedding can be resized, not a Sequential"):
        model.resize_token_embeddings(50)


@pytest.mark.parametrize("backend", [*BACKENDS, *["triton"] * INTERPRETS])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_padding_row_is_not_trained(family: str, backend: str, case: Case) -> None:
    """Where padding ids are kept by the mask, its row gets no gradient as an input. Its gradient
    as an output, of a tied decoder, stays."""
    folder = build_head(case.folder / "m", family, "MaskedLM", seed=case.seed)
    labels = torch.where(IDS > 0, IDS, -100)
    for name in ("tied", "untied"):
        if name == "untied":
            untied(folder)
        gradients = []
        mine = NomicBertForMaskedLM.from_pretrained(folder, backend=backend)
        for model in (mine, theirs(folder)):
            model(IDS, labels=labels).loss.backward()
            gradients.append(model.get_input_embeddings().weight.grad)
        found, wanted = gradients
        assert wanted[2].any()
        assert bool(wanted[0].any()) == (name == "tied")
        scale = wanted.abs().max()
        held("gradient of the words", found / scale, wanted / scale, GRADIENT, name)
        if name == "untied":
            assert not found[0].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_padding_row_of_a_new_model(family: str, case: Case) -> None:
    """It is zero, also if it is another row; null means none, and one beyond the table is refused,
    as in transformers."""
    for pad in (0, 7, None):
        settings = {"vocab_size": 120, "hidden_size": 32, "num_attention_heads": 4}
        sizes = {"num_hidden_layers": 1, "intermediate_size": 64, "pad_token_id": pad}
        if family == "NomicBert" and pad is None:
            continue  # transformers' config takes no null there
        kind = getattr(transformers, f"{family}Model")
        judge = kind(getattr(transformers, f"{family}Config")(**settings, **sizes))
        judge.save_pretrained(case.folder / str(pad))
        mine = NomicBert.from_pretrained(case.folder / str(pad), strict=False)
        fresh = NomicBert(mine.config)
        rows = [m.get_input_embeddings() for m in (judge, mine, fresh)]
        assert [row.padding_idx for row in rows] == [pad] * 3
        zero = [sorted(set((row.weight == 0).all(1).nonzero().flatten().tolist())) for row in rows]
        assert zero == [[] if pad is None else [pad]] * 3
    folder = case.build("nomic-v1.5")
    words = read_config(folder)["vocab_size"]
    edit_config(folder, pad_token_id=words)
    with pytest.raises(ConfigError, match=f"pad_token_id = {words}, but the vocabulary has"):
        NomicBert.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padding_row_that_is_cut_off(family: str, case: Case) -> None:
    folder = build_head(case.folder / "m", family, "MaskedLM", seed=case.seed, pad_token_id=100)
    judge, mine = theirs(folder), NomicBertForMaskedLM.from_pretrained(folder)
    for model in (judge, mine):
        assert model.get_input_embeddings().padding_idx == 100
        assert model.resize_token_embeddings(110).padding_idx == 100
        assert model.resize_token_embeddings(100).padding_idx is None
    for _ in range(2):  # a saved one has none either
        mine.save_pretrained(case.folder / "again")
        assert read_config(case.folder / "again")["pad_token_id"] is None
        mine = NomicBertForMaskedLM.from_pretrained(case.folder / "again")
        assert mine.get_input_embeddings().padding_idx is None


def test_tables_with_options_of_their_own(case: Case) -> None:
    """max_norm, a padding row of types, gradients scaled by frequency: what nn.Embedding does."""
    folder = build_checkpoint(case.folder / "m", "e5", num_hidden_layers=1)
    ids, types = torch.tensor([[5, 5, 9]]), torch.tensor([[0, 1, 1]])
    plain = NomicBert.from_pretrained(folder)
    for name, options in (
        ("word", {"max_norm": 0.1}),
        ("word", {"scale_grad_by_freq": True}),
        ("word", {"sparse": True}),
        ("token_type", {"padding_idx": 1}),
        ("position", {"max_norm": 0.1}),
    ):
        outputs: list[tuple[Tensor, Any]] = []
        for option in (options, {}):
            model = NomicBert.from_pretrained(folder)
            old = getattr(model.embeddings, name)
            new = nn.Embedding(*old.weight.shape, **option)
            new.load_state_dict(old.state_dict())
            setattr(model.embeddings, name, new)
            out = model(ids, token_type_ids=types).last_hidden_state
            out[0].square().cumsum(1).sum().backward()
            gradient = new.weight.grad
            outputs.append((out.detach(), gradient.to_dense()))
        (found, gradient), (usual, without) = outputs
        truth = plain(ids, token_type_ids=types).last_hidden_state.detach()
        held("without options", usual, truth, HIDDEN)
        if "max_norm" in options:
            assert (found - usual).abs().max() > 100 * HIDDEN
            continue
        held("hidden states", found, truth, HIDDEN)
        if "padding_idx" in options:
            without = without.index_fill(0, torch.tensor([1]), 0)
        if "scale_grad_by_freq" in options:
            without[5] /= 2
        scale = without.abs().max()
        held("gradient", gradient / scale, without / scale, GRADIENT, name)
