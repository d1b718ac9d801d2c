"""NomicBert as a torch module and in place of AutoModel: casts, outputs, arguments, training."""

import copy
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from nomicbert import EncoderConfig, NomicBert
from nomicbert.user_warnings import EmptyRowWarning
from nomicbert_kernels import select_ops
from tests.support.checkpoints import build_checkpoint
from tests.support.cpus import pretend

IDS = torch.tensor([[2, 7, 9, 30, 4], [5, 8, 11, 12, 6], [9, 3, 3, 250, 1]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    names = ("nomic-v1.5", "nomic-v2-moe", "e5")
    return {name: build_checkpoint(tmp_path_factory.mktemp(name), name) for name in names}


@pytest.fixture
def model(folders: Mapping[str, Path]) -> NomicBert:
    return NomicBert.from_pretrained(folders["nomic-v1.5"])


@torch.inference_mode()
def encode(model: NomicBert, ids: Tensor = IDS, mask: Tensor | None = MASK) -> Tensor:
    return model(ids, mask).last_hidden_state.clone()


@pytest.mark.parametrize("found", [True, False], ids=["bf16", "no bf16"])
def test_casts(found: bool, model: NomicBert, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cast model is bit-identical to one built in that dtype."""
    pretend(monkeypatch, found)
    state = model.state_dict()
    outputs = [encode(model)]
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    for cast, dtype in (
        (lambda m: m.half(), torch.float16),
        (lambda m: m.float(), torch.float32),  # values stay rounded to half
        (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.to(torch.float32), torch.float32),
        (lambda m: m.to("cpu", torch.float16), torch.float16),
    ):
        assert cast(model) is model
        assert model.dtype == dtype
        outputs.append(encode(model))
        assert outputs[-1].dtype == dtype
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
        fresh = NomicBert(model.config).eval()
        fresh.load_state_dict(state, assign=True)
        assert torch.equal(encode(fresh), outputs[-1])
        assert not torch.equal(outputs[-1].float(), outputs[-2].float())


def test_state_dict_round_trip(model: NomicBert, folders: Mapping[str, Path]) -> None:
    at_first = encode(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = NomicBert(model.config).eval()
    before = encode(other)  # its random weights are prepared by now
    report = other.load_state_dict(torch.load(buffer, weights_only=True))
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    assert not torch.equal(before, at_first)
    assert torch.equal(encode(other), at_first)
    assert set(other.state_dict()) == {name for name, _ in other.named_parameters()}


@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe"])
def test_copies_are_independent(variant: str, folders: Mapping[str, Path]) -> None:
    model = NomicBert.from_pretrained(folders[variant])
    at_first = encode(model)  # with prepared weights, which cannot be copied
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(encode(other), at_first)
        with torch.no_grad():
            other.layers[1].attention_norm.weight.mul_(2)
            other.layers[0].attention.qkv.weight.mul_(2)
        assert not torch.equal(encode(other), at_first)
    assert torch.equal(encode(model), at_first)


def test_a_shallow_copy_has_a_configuration_of_its_own(model: NomicBert) -> None:
    other = copy.copy(model)
    assert other.embeddings is model.embeddings
    assert other.config == model.config
    other.config.return_dict = False
    assert isinstance(other(IDS, MASK), tuple)
    assert model.config.return_dict
    assert not isinstance(model(IDS, MASK), tuple)


def test_input_embeddings(model: NomicBert) -> None:
    table = model.get_input_embeddings()
    assert table is model.embeddings.word
    with torch.inference_mode():
        embedded = model(inputs_embeds=table(IDS), attention_mask=MASK)[0]
    assert (embedded - encode(model)).abs().max() <= 1e-6
    fresh = torch.nn.Embedding(20, 64)
    model.set_input_embeddings(fresh)
    assert model.get_input_embeddings() is fresh
    with pytest.raises(ValueError, match="input_ids contains 250, but the table has 20 rows"):
        encode(model)


def test_output_object(model: NomicBert) -> None:
    out = model(IDS, MASK, output_hidden_states=True)
    last, states = out.last_hidden_state, out.hidden_states
    assert out[0] is last
    assert out["last_hidden_state"] is last
    assert out[:1] == (last,)
    assert out.to_tuple() == (last, states)
    assert list(out) == list(out.keys()) == ["last_hidden_state", "hidden_states"]
    assert len(out) == 2
    assert dict(**out)["hidden_states"] is states
    assert "pooler_output" not in out
    assert out.pooler_output is None
    for name in ("pooler_output", "to_tuple", "no such"):
        with pytest.raises(KeyError, match=name):
            out[name]
    with pytest.raises(IndexError):
        out[2]
    assert len(states) == model.config.num_hidden_layers + 1
    assert torch.equal(states[-1], last)
    assert not torch.equal(states[0], states[1])
    plain = model(IDS, MASK, return_dict=False)
    assert type(plain) is tuple
    assert len(plain) == 1
    assert torch.equal(plain[0], last)
    assert model(IDS, MASK).hidden_states is None


def test_pooler_and_layers_against_transformers(folders: Mapping[str, Path]) -> None:
    model = NomicBert.from_pretrained(folders["e5"], add_pooling_layer=True)
    theirs = transformers.BertModel.from_pretrained(folders["e5"], dtype=torch.float32).eval()
    types = torch.tensor([[0, 0, 1, 1, 1]]).expand(3, -1)
    mask = MASK.clone()
    mask[2] = 1
    with torch.no_grad():
        ours = model(IDS, mask, token_type_ids=types, output_hidden_states=True)
        wanted = theirs(IDS, mask, token_type_ids=types, output_hidden_states=True)
    assert (ours.pooler_output - wanted.pooler_output).abs().max() <= 1e-5
    assert ours.to_tuple()[1] is ours[1] is ours.pooler_output
    assert len(ours.hidden_states) == len(wanted.hidden_states)
    for mine, other in zip(ours.hidden_states, wanted.hidden_states, strict=True):
        assert ((mine - other) * mask[..., None]).abs().max() <= 1e-4


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "forward takes either input_ids or inputs_embeds, and not both"),
    ({"input_ids": IDS, "inputs_embeds": torch.zeros(3, 5, 64)}, "and not both"),
    ({"input_ids": IDS[0]}, r"input_ids must have 2 dimensions, not shape \(5,\)"),
    ({"inputs_embeds": torch.zeros(5, 64)}, r"inputs_embeds must have 3 dimensions, not shape"),
    ({"inputs_embeds": torch.zeros(3, 5, 32)}, r"inputs_embeds must be \(15, 64\), not"),
    ({"input_ids": IDS, "attention_mask": MASK[:2]}, r"attention_mask must be \(3, 5\), not \(2"),
    ({"input_ids": IDS, "attention_mask": MASK[0]}, r"attention_mask must be \(3, 5\), not \(5,"),
    ({"input_ids": IDS, "attention_mask": MASK * 2}, "attention_mask must hold 0 and 1 only"),
    ({"input_ids": IDS, "attention_mask": (1.0 - MASK) * -1e4}, "must hold 0 and 1 only"),
    ({"input_ids": IDS, "token_type_ids": IDS[:, :2]}, r"token_type_ids must be \(3, 5\), not"),
    ({"input_ids": IDS, "token_type_ids": IDS}, "token_type_ids contains 250, but the table has 2"),
    ({"input_ids": IDS, "position_ids": torch.zeros(3, 4)}, r"position_ids must be \(3, 5\), not"),
    ({"input_ids": IDS + 200}, "input_ids contains 450, but the table has 384 rows"),
    ({"input_ids": IDS - 5}, "input_ids contains -4, but the table has 384 rows"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments(arguments: dict[str, Any], message: str, model: NomicBert) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_learned_positions_end(folders: Mapping[str, Path]) -> None:
    model = NomicBert.from_pretrained(folders["e5"])
    assert encode(model, torch.full((1, 512), 7), None).isfinite().all()
    with pytest.raises(
        ValueError, match=r"513 positions are more than the 512 .*truncate the text"
    ):
        encode(model, torch.full((1, 513), 7), None)
    with pytest.raises(ValueError, match="601 positions are more than the 512"):
        model(IDS, position_ids=torch.tensor([0, 1, 2, 3, 600]))


def test_padding(model: NomicBert) -> None:
    out = encode(model)
    assert torch.equal(out[MASK == 0], torch.zeros(4, 64))
    assert (out[MASK == 1].abs().sum(1) > 1).all()
    for mask in (MASK.bool(), MASK.float(), MASK.to(torch.int32), MASK.half()):
        assert torch.equal(encode(model, mask=mask), out)
    ones = encode(model, mask=torch.ones_like(MASK))
    assert torch.equal(encode(model, mask=None), ones)
    # ids of dropped tokens do not matter, and an empty row changes no other row
    assert torch.equal(encode(model, torch.where(MASK == 1, IDS, 0)), out)
    mask = MASK.clone()
    mask[1] = 0
    with pytest.warns(EmptyRowWarning, match="row 1 of attention_mask keeps no token"):
        partly = encode(model, mask=mask)
    assert torch.equal(partly[[0, 2]], out[[0, 2]])
    assert not partly[1].any()
    with pytest.warns(EmptyRowWarning, match="rows 0, 1 and 2 of attention_mask keep no token"):
        nothing = encode(model, mask=torch.zeros_like(MASK))
    assert torch.equal(nothing, torch.zeros(3, 5, 64))
    assert encode(model, IDS[:0], MASK[:0]).shape == (0, 5, 64)
    assert encode(model, IDS[:, :0], None).shape == (3, 0, 64)


@pytest.mark.parametrize("key", ["resid_pdrop", "attn_pdrop"])
@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe"])
def test_dropout(variant: str, key: str, tmp_path: Path) -> None:
    off = {"resid_pdrop": 0.0, "attn_pdrop": 0.0}
    model = NomicBert.from_pretrained(build_checkpoint(tmp_path, variant, **off | {key: 0.3}))

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.train()(IDS, MASK)[0].detach()

    assert not model.training
    one = run(1)
    assert model.layers[0].training
    assert torch.equal(run(1), one)
    assert not torch.equal(run(2), one)
    assert torch.equal(encode(model.eval()), encode(model))


def test_a_table_of_another_width_is_refused(model: NomicBert) -> None:
    with pytest.raises(ValueError, match="the table must be 64 wide, not 7"):
        model.set_input_embeddings(torch.nn.Embedding(100, 7))


def test_the_backend_is_chosen_anew_after_a_cast(
    model: NomicBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "nomicbert.modeling.backend_module.select_ops",
        lambda *args: asked.append(args[1]) or select_ops(*args),
    )
    pretend(monkeypatch, True)
    encode(model)
    encode(model)
    encode(model.bfloat16())
    assert asked == [torch.float32, torch.bfloat16]
    pretend(monkeypatch, False)
    encode(model.bfloat16())
    assert asked[2:] == [torch.float32]


@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe", "e5"])
def test_training_reaches_every_parameter_and_the_next_pass(
    variant: str, folders: Mapping[str, Path]
) -> None:
    model = NomicBert.from_pretrained(folders[variant], add_pooling_layer=variant == "e5")
    at_first = encode(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    out = model(torch.arange(60).view(3, 20), torch.ones(3, 20))
    loss = out[0].square().mul(torch.linspace(0, 1, 64)).sum()
    loss = loss if out.pooler_output is None else loss + out.pooler_output.sum()
    loss.backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    optimizer.step()
    trained = encode(model)  # still in eval mode: only the weights have changed
    assert not torch.equal(trained, at_first)
    fresh = NomicBert(model.config, add_pooling_layer=variant == "e5").eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(encode(fresh), trained)


def test_a_model_loaded_under_inference_mode_can_be_trained(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5")
    with torch.inference_mode():
        model = NomicBert.from_pretrained(tmp_path)
    model(IDS)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_ids_that_are_not_integers() -> None:
    model = NomicBert(EncoderConfig("bert", 40, 24, 1, 3, 32, 2, 64, 1e-12))
    with pytest.raises(ValueError, match=r"input_ids must be integers, not torch\.float32"):
        model(torch.ones(1, 3))


def test_gradients_by_torch_func(folders: Mapping[str, Path]) -> None:
    model = NomicBert.from_pretrained(folders["nomic-v1.5"])
    model(IDS, MASK).last_hidden_state.square().sum().backward()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        out = torch.func.functional_call(model, parameters, (IDS, MASK))
        return out.last_hidden_state.square().sum()

    found = torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()})
    for name, p in model.named_parameters():
        wanted = torch.zeros_like(p) if p.grad is None else p.grad
        assert (found[name] - wanted).abs().max() <= 1e-4 * wanted.abs().max(), name
