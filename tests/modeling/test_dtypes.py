"""dtypes: what is stored narrow and computed in float32; "fastest" is the device's best.

On a CPU that is float16, and bfloat16 where the CPU has no instructions for it.
"""

from __future__ import annotations

import copy
import itertools
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nomicbert import Embedder, NomicBert
from nomicbert.modeling.packing import PackedBatch, pack
from nomicbert_kernels import linear_torch
from nomicbert_kernels.dtypes import bf16_share, compute_dtype, fastest_dtype
from tests.ops.cases import NEEDS_PACKING
from tests.support.checkpoints import build_checkpoint
from tests.support.cpus import pretend
from tests.support.vocabularies import SENTENCES

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
BACKENDS = ("reference", "torch")
# gated, experts in the second layer, plain with learned positions
VARIANTS = ("nomic-v1.5", "nomic-v2-moe", "gte")
WIDENED = "float16 on a CPU is stored as float16 and computed in float32"
BRAIN_WIDENED = "bfloat16 on this CPU is stored as bfloat16 and computed in float32"
IDS = torch.arange(30).view(3, 10)
MASK = (torch.arange(10) < torch.tensor([10, 4, 7])[:, None]).long()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints in float16 on the disk, of two layers."""
    where = tmp_path_factory.mktemp("half")
    return {
        name: build_checkpoint(where / name, name, num_hidden_layers=2, on_disk_dtype=HALF)
        for name in (*VARIANTS, "conan-v1")
    }


@pytest.fixture(params=[(v, b) for v in VARIANTS for b in BACKENDS], ids="-".join)
def pair(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[NomicBert, NomicBert]:
    """The same numbers stored in float16 and in float32."""
    variant, name = request.param
    keywords = {"backend": name, "add_pooling_layer": variant == "gte"}
    half = NomicBert.from_pretrained(folders[variant], dtype=HALF, **keywords)
    assert {p.dtype for p in half.parameters()} == {HALF}
    return half, NomicBert.from_pretrained(folders[variant], **keywords)


def batch_of(*lengths: int) -> PackedBatch:
    return pack([[(7 * i + n) % 90 + 5 for i in range(n)] for n in lengths])


def packed(model: NomicBert) -> Tensor:
    with torch.no_grad():
        return model.encode_packed(batch_of(3, 3, 12, 1))


def equal(half: NomicBert, full: NomicBert) -> bool:
    """To the bit, before anything is cast back."""
    mine, wanted = packed(half), packed(full)
    assert mine.dtype == wanted.dtype == FULL
    return torch.equal(mine, wanted)


def full_copy(half: NomicBert) -> NomicBert:
    """What a model of the same numbers in float32 would be."""
    return copy.deepcopy(half).float()


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    loggers = ("nomicbert.modeling.backend_module", "nomicbert.loading.target")
    return [record for record in caplog.record_tuples if record[0] in loggers]


def test_half_on_a_cpu_equals_full(pair: tuple[NomicBert, NomicBert]) -> None:
    half, full = pair
    assert equal(half, full)
    batch = batch_of(9, 2, 2)
    states: dict[NomicBert, list[Tensor]] = {half: [], full: []}
    for rows in (batch.first_tokens(), batch.last_tokens()):
        with torch.inference_mode():
            mine, wanted = (m.encode_packed(batch, rows=rows, states=states[m]) for m in pair)
        assert torch.equal(mine, wanted)
    assert all(map(torch.equal, states[half], states[full]))
    assert half.dtype == HALF


def test_forward_returns_the_dtype_of_the_model(pair: tuple[NomicBert, NomicBert]) -> None:
    for arguments in ({"input_ids": IDS}, {"inputs_embeds": torch.randn(3, 10, 64).half()}):
        with torch.no_grad():
            mine, wanted = (
                model(**arguments, attention_mask=MASK, output_hidden_states=True) for model in pair
            )
        assert len(mine.hidden_states) == 3
        assert mine.keys() == wanted.keys()
        assert ("pooler_output" in mine) == (pair[0].pooler is not None)
        for name in mine:
            for x, y in zip(*(o[name] if name == "hidden_states" else [o[name]] for o in
                              (mine, wanted)), strict=True):  # fmt: skip
                assert x.dtype == HALF
                assert y.dtype == FULL
                assert torch.equal(x, y.half())  # one cast, at the very end


def test_gradients(pair: tuple[NomicBert, NomicBert]) -> None:
    """Those of float32, cast once; a row of a table sums its own in float16."""
    for model in pair:
        model.encode_packed(batch_of(3, 3, 12, 1)).square().sum().backward()
    half, full = (dict(model.named_parameters()) for model in pair)
    for name, parameter in half.items():
        mine, wanted = parameter.grad, full[name].grad
        if "pooler" in name:
            assert mine is wanted is None
            continue
        assert mine.dtype == HALF
        assert wanted.abs().max() > 0
        if "embeddings" in name and "norm" not in name:
            assert (mine.float() - wanted).abs().max() <= 1e-2 * wanted.abs().max()
        else:
            assert torch.equal(mine, wanted.half()), name


@pytest.mark.parametrize("trained", ["embeddings", "bias", "attention_norm", "out.weight"])
def test_gradients_of_a_model_frozen_in_part(
    trained: str, pair: tuple[NomicBert, NomicBert]
) -> None:
    """What was prepared under inference_mode neither cuts a gradient off nor refuses to serve."""
    for model in pair:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)
        with torch.inference_mode():
            model.encode_packed(batch_of(4, 2))
        model.encode_packed(batch_of(3, 3, 12, 1)).square().sum().backward()
    full = dict(pair[1].named_parameters())
    for name, parameter in pair[0].named_parameters():
        if full[name].grad is None:
            assert parameter.grad is None
            continue
        assert full[name].grad.abs().max() > 0
        difference = (parameter.grad.float() - full[name].grad).abs().max()
        assert difference <= 1e-2 * full[name].grad.abs().max(), name


def test_half_of_a_model_on_a_cpu(pair: tuple[NomicBert, NomicBert]) -> None:
    half, full = pair
    wanted = packed(full)
    assert full.half() is full
    assert full.dtype == HALF
    assert equal(full, full_copy(half))
    assert torch.equal(packed(full), wanted)
    assert torch.equal(packed(full.float()), wanted)


def test_a_copy_is_a_model_of_its_own(pair: tuple[NomicBert, NomicBert]) -> None:
    half, full = pair
    packed(half)
    other = copy.deepcopy(half)
    assert equal(other, full)
    with torch.no_grad():
        other.layers[0].attention.out.weight.zero_()
    assert not equal(other, full)
    assert equal(other, full_copy(other))
    assert equal(half, full)


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda p: p.mul_(1.5).add_(0.1),
    "behind the back of versions": lambda p: p.data.mul_(1.5).add_(0.1),
    "another storage": lambda p: setattr(p, "data", p.data * 1.5 + 0.1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_parameter_is_seen(
    change: str, pair: tuple[NomicBert, NomicBert]
) -> None:
    half = pair[0]
    for name, parameter in half.layers[1].named_parameters():
        before = packed(half)
        with torch.no_grad():
            CHANGES[change](parameter)
        assert equal(half, full_copy(half)), name
        if "qkv.bias" not in name:  # one number added to all keys changes no weight
            assert not torch.equal(packed(half), before), name


@pytest.mark.parametrize("foreach", [False, True])
def test_made_again_after_an_optimizer_step(
    foreach: bool, pair: tuple[NomicBert, NomicBert]
) -> None:
    """In eval mode throughout, so that nothing but the parameters can tell."""
    half = pair[0]
    optimizer = torch.optim.SGD(half.parameters(), lr=0.05, foreach=foreach)
    for _ in range(2):
        before = packed(half)
        half.encode_packed(batch_of(5, 2)).square().mean().backward()
        optimizer.step()
        assert equal(half, full_copy(half))
        assert (packed(half) - before).abs().max() > 1e-4


def test_one_wide_copy_of_a_weight_at_most(pair: tuple[NomicBert, NomicBert]) -> None:
    half = pair[0]
    packed(half)
    parameters = {id(p) for p in half.parameters()}
    weights = [entry.weight for entry in half._prepared._entries.values()]
    assert len(weights) >= 8
    for weight in weights:
        assert weight.dtype == FULL
        assert (id(weight.source) in parameters) == (weight.packed is not None)
        assert weight.packed is None or weight.source.dtype == HALF


@NEEDS_PACKING
@pytest.mark.all_threads
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_text_keeps_its_bits(variant: str, folders: dict[str, Path], seed: int) -> None:
    model = NomicBert.from_pretrained(folders[variant], dtype=HALF, backend="torch")
    rng = random.Random(seed)
    texts = [[rng.randrange(5, 250) for _ in range(n)] for n in (2, 3, 17, 33, 65, 200, 17)]

    def encode(indices: list[int]) -> list[Tensor]:
        with torch.inference_mode():
            states = model.encode_packed(pack([texts[i] for i in indices]))
        return list(states.split([len(texts[i]) for i in indices]))

    alone = [encode([i])[0] for i in range(len(texts))]
    for _ in range(10):
        indices = rng.sample(range(len(texts)), rng.randint(2, len(texts)))
        for i, states in zip(indices, encode(indices), strict=True):
            assert torch.equal(states, alone[i])


@pytest.mark.parametrize("variant", [*VARIANTS, "conan-v1"])
def test_vectors(variant: str, folders: dict[str, Path]) -> None:
    """Pooling and Dense layers included."""
    half, full = (Embedder(folders[variant], dtype=dtype) for dtype in (HALF, FULL))
    assert {p.dtype for p in half.pooling.parameters()} == ({HALF} if half.pooling.dense else set())
    full.pooling.half().float()  # the Dense file holds float32
    assert (half.encode(SENTENCES, prompt="") == full.encode(SENTENCES, prompt="")).all()


def test_the_core_is_one_graph(folders: dict[str, Path]) -> None:
    model = NomicBert.from_pretrained(folders["nomic-v2-moe"], dtype=HALF, backend="torch")
    torch.compiler.reset()
    compiled = torch.compile(model.core, fullgraph=True, backend="aot_eager")
    ctx = model.context(batch_of(3, 9))
    with torch.no_grad():
        assert (compiled(ctx) - model.core(ctx)).abs().max() <= 1e-5
    torch.compiler.reset()


def test_under_autocast(pair: tuple[NomicBert, NomicBert]) -> None:
    """Packed weights do not follow it; what stands in for them is as wide."""
    packed(pair[0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mine, wanted = (model(IDS, MASK)[0] for model in pair)
    assert mine.dtype == HALF
    assert torch.equal(mine, wanted.half())


def test_said_once_a_model(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    line = ("nomicbert.modeling.backend_module", logging.WARNING, WIDENED)
    model = NomicBert.from_pretrained(folders["gte"], dtype=HALF)
    assert said(caplog) == []  # it may move to a GPU before it computes anything
    for _ in range(2):
        packed(model)
        packed(model.train().eval())
        packed(model.float().half())
    assert said(caplog) == [line]
    packed(copy.deepcopy(model))
    assert said(caplog) == [line]
    other = NomicBert.from_pretrained(folders["gte"])
    packed(other)
    assert said(caplog) == [line]
    packed(other.half())
    assert said(caplog) == [line, line]


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has no instructions for bf16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})


def capable(monkeypatch: pytest.MonkeyPatch, *names: str, onednn: bool = True) -> None:
    """A CPU with these instructions, as torch would tell of it."""
    found = {"amx_bf16": False, "avx512_bf16": False, "avx2": True} | dict.fromkeys(names, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(linear_torch, "onednn_packs", lambda dtype: onednn)


@pytest.fixture(params=[(v, b) for v in VARIANTS for b in BACKENDS], ids="-".join)
def brain(request: pytest.FixtureRequest, folders: dict[str, Path]) -> NomicBert:
    variant, name = request.param
    return NomicBert.from_pretrained(folders[variant], dtype=BRAIN, backend=name)


def test_bfloat16_without_instructions_equals_full(
    brain: NomicBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch)
    full = full_copy(brain)
    assert equal(brain, full)
    assert {p.dtype for p in brain.parameters()} == {BRAIN}
    with torch.no_grad():
        mine, wanted = (m(IDS, MASK, output_hidden_states=True) for m in (brain, full))
    assert mine.last_hidden_state.dtype == BRAIN
    for x, y in zip(mine.hidden_states, wanted.hidden_states, strict=True):
        assert torch.equal(x, y.to(BRAIN))
    for model in (brain, full):
        model.encode_packed(batch_of(3, 12, 1)).square().sum().backward()
    for layers in zip(brain.layers, full.layers, strict=True):
        (x, y) = (layer.attention.out.weight.grad for layer in layers)
        assert y.abs().max() > 0
        assert torch.equal(x, y.to(BRAIN))


def test_bfloat16_follows_the_instructions(
    brain: NomicBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the CPU as it is now: neither weights nor plans of another kind are left over."""
    without(monkeypatch)
    full = full_copy(brain)
    assert equal(brain, full)
    pretend(monkeypatch, True)
    mine = packed(brain)
    assert mine.dtype == BRAIN
    assert not torch.equal(mine, packed(full).to(BRAIN))
    assert {e.weight.dtype for e in brain._prepared._entries.values()} == {BRAIN}
    pretend(monkeypatch, False)
    assert equal(brain, full)
    assert {e.weight.dtype for e in brain._prepared._entries.values()} == {FULL}


def test_vectors_in_bfloat16(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A Dense layer's follow the instructions too."""
    without(monkeypatch)
    mine, full = (Embedder(folders["conan-v1"], dtype=dtype) for dtype in (BRAIN, FULL))
    for module in (full.model, full.pooling):
        module.bfloat16().float()
    wanted = full.encode(SENTENCES, prompt="")
    assert (mine.encode(SENTENCES, prompt="") == wanted).all()
    pretend(monkeypatch, True)
    assert (mine.encode(SENTENCES, prompt="") != wanted).any()


def test_the_core_in_bfloat16_is_one_graph(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch cannot be asked for a CPU's instructions from inside a graph."""
    without(monkeypatch)
    model = NomicBert.from_pretrained(folders["nomic-v2-moe"], dtype=BRAIN, backend="torch")
    torch.compiler.reset()
    compiled = torch.compile(model.core, fullgraph=True, backend="eager")
    ctx = model.context(batch_of(3, 9))
    with torch.no_grad():
        found = compiled(ctx)
        assert found.dtype == FULL
        assert (found - model.core(ctx)).abs().max() <= 1e-5
    torch.compiler.reset()


@pytest.mark.parametrize("stored", [FULL, BRAIN])
def test_autocast_is_as_it_was(
    stored: torch.dtype, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It multiplies in bf16 wherever it is asked to, whatever the parameters are kept in."""
    model = NomicBert.from_pretrained(folders["nomic-v1.5"], dtype=stored, backend="torch")
    without(monkeypatch)
    products: list[torch.dtype] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda *args: (y := linear(*args), products.append(y.dtype))[0],
    )
    with torch.no_grad(), torch.autocast("cpu", BRAIN):
        mine = packed(model)
        wanted = packed(full_copy(model))
        assert model.plan([3]) == full_copy(model).plan([3])
    assert set(products) == {BRAIN}
    assert torch.equal(mine, wanted)
    if stored == FULL:
        pretend(monkeypatch, True)
        with torch.no_grad(), torch.autocast("cpu", BRAIN):
            assert torch.equal(packed(model), mine)


@pytest.mark.parametrize(
    ("names", "wanted"), [((), [(logging.INFO, BRAIN_WIDENED)]), (("avx512_bf16",), [])]
)
def test_what_bfloat16_costs(
    names: tuple[str, ...],
    wanted: list[Any],
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    capable(monkeypatch, *names)
    model = NomicBert.from_pretrained(folders["gte"], dtype=torch.bfloat16, backend="reference")
    for _ in range(2):
        packed(model.train().eval())
    assert [line[1:] for line in said(caplog)] == wanted


def test_which_dtype_computes() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda:1")
    for dtype in (FULL, HALF, torch.bfloat16, torch.float64):
        assert compute_dtype(gpu, dtype) == dtype
        if dtype != BRAIN:  # which hangs on the CPU, below
            assert compute_dtype(cpu, dtype) == (FULL if dtype == HALF else dtype)


NO_BF16 = "dtype='fastest' is torch.float32 on this CPU: it has no bfloat16 instructions"
BF16 = "dtype='fastest' is torch.bfloat16 on this CPU: it has bfloat16 instructions"
CPUS = [
    ((), True, FULL, NO_BF16),
    (("amx_bf16",), True, torch.bfloat16, BF16),
    (("avx512_bf16",), True, torch.bfloat16, BF16),
    (("amx_bf16", "avx512_bf16"), False, FULL, NO_BF16),
    (("bf16",), True, torch.bfloat16, BF16),
    (("amx_fp16", "avx512_fp16"), True, FULL, NO_BF16),
]


@pytest.mark.parametrize(("names", "onednn", "dtype"), [case[:3] for case in CPUS])
def test_which_cpu_computes_in_bfloat16(
    names: tuple[str, ...], onednn: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    capable(monkeypatch, *names, onednn=onednn)
    assert compute_dtype(torch.device("cpu"), BRAIN) == dtype
    assert compute_dtype(torch.device("cuda:1"), BRAIN) == BRAIN


@pytest.mark.parametrize(("names", "onednn", "dtype", "note"), CPUS)
@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_fastest_on_a_cpu(
    keyword: str,
    names: tuple[str, ...],
    onednn: bool,
    dtype: torch.dtype,
    note: str,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    capable(monkeypatch, *names, onednn=onednn)
    monkeypatch.setattr("nomicbert_kernels.dtypes.bf16_share", lambda: 0.5)
    model = NomicBert.from_pretrained(folders["gte"], **{keyword: "fastest"})
    assert {p.dtype for p in model.parameters()} == {dtype}
    ((logger, level, message),) = said(caplog)
    assert (logger, level) == ("nomicbert.loading.target", logging.WARNING)
    assert message.startswith(note)


@pytest.mark.parametrize(
    ("share", "dtype"), [(0.1, BRAIN), (0.89, BRAIN), (0.9, FULL), (1.3, FULL)]
)
def test_instructions_that_are_no_faster(
    share: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    capable(monkeypatch, "avx512_bf16")
    monkeypatch.setattr("nomicbert_kernels.dtypes.bf16_share", lambda: share)
    found, why = fastest_dtype(torch.device("cpu"))
    assert found == dtype
    assert why.endswith(f"a product takes {share:.2f} of float32's time")


def test_the_share_is_one_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 products of 3 s beside float32's of 2 s."""
    bf16_share.cache_clear()
    clock = itertools.cycle([0.0, 3.0, 10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert bf16_share() == 1.5
    bf16_share.cache_clear()


@pytest.mark.parametrize(
    ("capability", "dtype", "why"),
    [
        ((6, 1), HALF, "compute capability 6.1 has no bfloat16"),
        ((7, 5), HALF, "compute capability 7.5 has no bfloat16"),
        ((8, 0), torch.bfloat16, "compute capability 8.0 multiplies in bfloat16"),
        ((12, 0), torch.bfloat16, "compute capability 12.0 multiplies in bfloat16"),
    ],
)
def test_fastest_on_a_gpu(
    capability: tuple[int, int], dtype: torch.dtype, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    device = torch.device("cuda:3")
    assert fastest_dtype(device) == (dtype, why)
    assert asked == [device]


def test_fastest_elsewhere() -> None:
    for name in ("mps", "xpu"):
        assert fastest_dtype(torch.device(name))[0] == FULL


def test_fastest_is_said_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    capable(monkeypatch)
    embedder = Embedder(folders["conan-v1"], dtype="fastest")
    embedder.encode(SENTENCES)
    assert embedder.model.dtype == FULL
    assert {p.dtype for p in embedder.pooling.parameters()} == {FULL}
    assert len(said(caplog)) == 1
    NomicBert.from_pretrained(folders["gte"], dtype="fastest", torch_dtype=HALF)
    NomicBert.from_pretrained(folders["gte"], dtype="auto")
    assert len(said(caplog)) == 1
