"""Parameters that are views of a file: same values as copies, whatever happens to either."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nomicbert import CheckpointError, NomicBert
from nomicbert.loading import mapped_weights
from nomicbert.loading.mapped_weights import LEAST, SWITCH, Views, reading, written
from tests.support.checkpoints import build_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are mapped on Linux only")
NEEDS_PAGEMAP = pytest.mark.skipif(
    not mapped_weights.PAGEMAP.exists(), reason="this system has no /proc/self/pagemap"
)
# Wide enough for every linear layer to be a view.
SHAPES: dict[str, dict[str, int]] = {
    "nomic-v1.5": {"n_embd": 256, "n_head": 4, "n_inner": 512, "n_layer": 2},
    "conan-v1": {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512},
}
IDS = torch.tensor([[2, 7, 9, 11, 3], [4, 5, 6, 8, 1]])


@pytest.fixture(params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "checkpoint", request.param, **SHAPES[request.param])


@torch.inference_mode()
def vectors(model: NomicBert) -> Tensor:
    return model(IDS).last_hidden_state


def copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> NomicBert:
    """The model of a folder, without views."""
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH, "0")
        model = NomicBert.from_pretrained(folder)
    assert not any(map(is_view, model.parameters()))
    return model


def is_view(parameter: Tensor) -> bool:
    found = (reference() for reference in mapped_weights._MAPPED.valuerefs())
    return any(mapped is not None and mapped.holds(parameter) for mapped in found)


def resident(tensor: Tensor) -> int:
    """Pages of a tensor in memory, without the first and last, which other tensors share."""
    page = os.sysconf("SC_PAGESIZE")
    first, end = -(-tensor.data_ptr() // page), (tensor.data_ptr() + tensor.nbytes) // page
    with mapped_weights.PAGEMAP.open("rb") as file:
        file.seek(8 * first)
        entries = np.frombuffer(file.read(8 * (end - first)), np.uint64)
    assert len(entries) == end - first > 8
    return int((entries >> np.uint64(63)).sum())


def test_parameters_are_views_with_the_values_of_copies(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = NomicBert.from_pretrained(folder), copied(folder, monkeypatch)
    views = [name for name, p in model.named_parameters() if is_view(p)]
    # of BERT query, key and value are apart in the file, so they are copied
    stems = {name.split(".", 2)[2] for name in views if name.startswith("layers.0.")}
    nomic = {"attention.qkv.weight", "mlp.up_gate.weight"}
    wanted = nomic if "nomic" in model.config.model_type else {"mlp.up.weight"}
    assert stems == {"attention.out.weight", "mlp.down.weight"} | wanted
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert one.requires_grad
        assert torch.equal(one, two), name
    assert torch.equal(vectors(model), vectors(other))


@NEEDS_PAGEMAP
def test_preparing_leaves_no_pages_behind(folder: Path) -> None:
    model = NomicBert.from_pretrained(folder)
    weight = model.layers[0].mlp.down.weight
    before = resident(weight)  # loading has counted the values that are not finite
    read = reading(weight)
    assert read.data_ptr() != weight.data_ptr()
    assert resident(read) == 0
    checksum = read.sum()
    assert resident(read) > 8
    assert resident(weight) == before == 0
    assert torch.equal(checksum, weight.sum())


@NEEDS_PAGEMAP
def test_a_prepared_weight_refers_to_the_parameter(folder: Path) -> None:
    model = NomicBert.from_pretrained(folder)
    vectors(model)
    sources = {weight.source.data_ptr() for weight in model.prepared_weights()}
    assert {layer.mlp.down.weight.data_ptr() for layer in model.layers} <= sources
    model.use("reference")  # which does not pack
    vectors(model)
    assert {weight.source.data_ptr() for weight in model.prepared_weights()} == sources


def change_data(parameter: Tensor) -> None:
    """One element, unknown to the version counter, and not one of those that are compared."""
    parameter.data.flatten()[12345] += 100.0


def change_in_place(parameter: Tensor) -> None:
    with torch.no_grad():
        parameter.mul_(1.5)


def train(parameter: Tensor) -> None:
    torch.optim.SGD([parameter], lr=1.0).zero_grad()
    (parameter * parameter).sum().backward()
    torch.optim.SGD([parameter], lr=0.25).step()


@pytest.mark.parametrize("change", [change_data, change_in_place, train])
@pytest.mark.parametrize("encoded", [False, True])
def test_changes_are_kept_and_computed_with(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Tensor], None],
    encoded: bool,
) -> None:
    stored = (folder / "model.safetensors").read_bytes()
    model, beside = NomicBert.from_pretrained(folder), NomicBert.from_pretrained(folder)
    other = copied(folder, monkeypatch)
    plain = vectors(other)
    if encoded:
        assert torch.equal(vectors(model), plain)
    for one in (model, other):
        change(one.layers[1].mlp.down.weight)
        # as for copies: a change of few elements through .data is not seen once they are packed
        one.use("torch")
    assert written(model.layers[1].mlp.down.weight)
    assert reading(model.layers[1].mlp.down.weight) is model.layers[1].mlp.down.weight
    assert not torch.equal(vectors(model), plain)
    assert torch.equal(vectors(model), vectors(other))
    assert torch.equal(model.layers[1].mlp.down.weight, other.layers[1].mlp.down.weight)
    # neither the other model nor the file has changed
    assert torch.equal(vectors(beside), plain)
    assert (folder / "model.safetensors").read_bytes() == stored


def test_a_saved_model_is_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = NomicBert.from_pretrained(folder), copied(folder, monkeypatch)
    plain = vectors(model)
    for one, name in ((model, "one"), (other, "other")):
        one.save_pretrained(folder.parent / name)
    saved = [folder.parent / name / "model.safetensors" for name in ("one", "other")]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    # also into the folder that it is a view of, and in place of it
    change_in_place(model.layers[0].mlp.down.weight)
    changed = vectors(model)
    model.save_pretrained(folder)
    model.use("torch")
    assert torch.equal(vectors(model), changed)
    assert torch.equal(vectors(NomicBert.from_pretrained(folder)), changed)
    assert torch.equal(vectors(NomicBert.from_pretrained(saved[0].parent)), plain)


def test_state_dicts_are_written_by_safetensors(folder: Path) -> None:
    model = NomicBert.from_pretrained(folder)
    state = model.state_dict()
    save_file(state, folder.parent / "state.safetensors")
    for name, tensor in load_file(folder.parent / "state.safetensors").items():
        assert torch.equal(tensor, state[name])


def test_copies_are_not_views(folder: Path) -> None:
    model = NomicBert.from_pretrained(folder)
    plain, weight = vectors(model), model.layers[0].mlp.down.weight
    pickled = pickle.dumps(weight)
    # what is written is the parameter, and not the file that it is in
    assert len(pickled) < weight.nbytes + 4096
    buffer = io.BytesIO()
    torch.save({"weight": weight}, buffer)
    assert len(buffer.getvalue()) < weight.nbytes + 4096
    assert torch.equal(pickle.loads(pickled), weight)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any(map(is_view, other.parameters()))
        assert torch.equal(vectors(other), plain)
    state = {name: p.detach() for name, p in model.named_parameters()}
    given = NomicBert.from_pretrained(folder, state_dict=state)
    change_in_place(given.layers[0].mlp.down.weight)
    assert torch.equal(vectors(model), plain)
    model.share_memory()
    assert torch.equal(vectors(model), plain)


def in_child(work: Callable[[], bool]) -> bool:
    """Whether work returns True in a forked process."""
    child = os.fork()
    if not child:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_has_views_of_its_own(folder: Path) -> None:
    weight = NomicBert.from_pretrained(folder).layers[0].mlp.down.weight
    values = weight.detach().clone()

    def work() -> bool:
        same = bool((reading(weight).numpy(force=True) == values.numpy()).all())
        weight.data.numpy()[5] += 1
        return same and reading(weight) is weight

    assert in_child(work)
    assert torch.equal(reading(weight), values)
    assert torch.equal(weight, values)


def test_a_replaced_file_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = NomicBert.from_pretrained(folder), vectors(copied(folder, monkeypatch))
    file = folder / "model.safetensors"
    file.with_suffix(".new").write_bytes(bytes(file.stat().st_size))
    os.replace(file.with_suffix(".new"), file)
    assert torch.equal(vectors(model), plain)
    shutil.rmtree(folder)
    model.use("torch")
    assert torch.equal(vectors(model), plain)


@NEEDS_PAGEMAP
def test_a_file_overwritten_in_place_is_an_error(folder: Path) -> None:
    model = NomicBert.from_pretrained(folder)
    file = folder / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-100_000, os.SEEK_END)
        opened.write(bytes(50_000))
    os.utime(file, ns=(0, 1))  # in case the clock of the file system is coarse
    with pytest.raises(CheckpointError, match=r"model\.safetensors was overwritten .*=0"):
        vectors(model)


def test_without_a_pagemap_the_parameter_itself_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_weights, "PAGEMAP", Path("/proc/self/missing"))
    model = NomicBert.from_pretrained(folder)
    weight = model.layers[0].mlp.down.weight
    assert is_view(weight)
    assert reading(weight) is weight
    assert torch.equal(vectors(model), vectors(copied(folder, monkeypatch)))


def test_other_memory_is_read_where_it_is(folder: Path) -> None:
    model = NomicBert.from_pretrained(folder)
    assert is_view(model.layers[0].mlp.down.weight)
    for tensor in (torch.zeros(300, 300), torch.zeros(300, 300).T, torch.zeros(3, device="meta")):
        assert reading(tensor) is tensor


@pytest.mark.parametrize(
    ("names", "shape", "dtype"),
    [
        (("a", "b"), (512, 64), torch.float16),  # converted
        (("b", "a"), (512, 64), torch.float32),  # in another order
        (("a", "c"), (768, 64), torch.float32),  # apart
        (("a",), (264, 64), torch.float32),  # padded
        (("small",), (16,), torch.float32),  # under LEAST bytes
        (("missing",), (256, 64), torch.float32),
        (("whole",), (256, 128), torch.float32),  # no floating-point numbers
    ],
)
def test_what_is_not_in_the_file_like_this_is_copied(
    tmp_path: Path, names: tuple[str, ...], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensors = {name: torch.randn(256, 64) for name in "abc"}
    assert tensors["a"].nbytes >= LEAST
    more = {"small": torch.ones(16), "whole": torch.ones(256, 128, dtype=torch.int32)}
    save_file(tensors | more, tmp_path / "a.safetensors")
    views = Views.of(tmp_path / "a.safetensors")
    assert views is not None
    fused = views.stacked(("a", "b"), (512, 64), torch.float32)
    assert fused is not None
    assert torch.equal(fused, torch.cat([tensors["a"], tensors["b"]]))
    assert views.stacked(names, shape, dtype) is None


def test_tensors_at_odd_addresses_are_copied(tmp_path: Path) -> None:
    file, weight = tmp_path / "a.safetensors", torch.randn(256, 64)
    save_file({"a": weight}, file)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" "
    file.write_bytes((length + 1).to_bytes(8, "little") + header + content[8 + length :])
    with safe_open(file, "pt") as opened:
        assert torch.equal(opened.get_tensor("a"), weight)
    views = Views.of(file)
    assert views is not None
    assert views.stacked(("a",), (256, 64), torch.float32) is None


def descriptors(folder: Path) -> int:
    """Open descriptors of a file in this folder, and mappings of it."""
    links = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    opened = sum(str(folder) in os.readlink(link) for link in links if link.is_symlink())
    return opened + Path("/proc/self/maps").read_text().count(str(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_file_is_let_go_with_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = build_checkpoint(
        tmp_path, "nomic-v1.5", on_disk_dtype=dtype, **SHAPES["nomic-v1.5"] | {"n_embd": 512}
    )
    model = NomicBert.from_pretrained(folder, dtype=dtype)
    before = descriptors(folder)
    vectors(model)
    # packed weights keep no mapping of their own
    assert descriptors(folder) == before
    weight = model.layers[0].mlp.down.weight
    assert is_view(weight)
    del model
    gc.collect()
    assert descriptors(folder) > 0
    assert torch.isfinite(weight).all()
    del weight
    gc.collect()
    assert descriptors(folder) == 0
