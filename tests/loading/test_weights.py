"""Weight files: truncated, forged or mismatched ones raise a CheckpointError that says why."""

import dataclasses
import io
import json
import pickle
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nomicbert import NomicBert
from nomicbert.errors import CheckpointError, NomicBertError
from nomicbert.loading.hub_config import read_config
from nomicbert.loading.pickle_depth import check_depth
from nomicbert.loading.tensor_files import TensorFiles
from tests.support.checkpoints import build_checkpoint, edit_config, read_tensors
from tests.support.guards import guarded

SAFE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN = "pytorch_model.bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path, "nomic-v1.5")


def refused(folder: Path, message: str, **keywords: Any) -> str:
    with pytest.raises(CheckpointError, match=message) as caught:
        NomicBert.from_pretrained(folder, **keywords)
    return str(caught.value)


def as_bin(folder: Path, content: Any) -> Path:
    """Replace the folder's weights by one pickle."""
    (folder / SAFE).unlink(missing_ok=True)
    torch.save(content, folder / BIN)
    return folder / BIN


def test_one_error_lists_missing_extra_and_wrong_tensors(folder: Path) -> None:
    tensors = read_tensors(folder)
    del tensors["encoder.layers.1.attn.Wqkv.weight"]
    del tensors["emb_ln.bias"]
    tensors["encoder.layers.7.norm1.weight"] = torch.ones(64)
    tensors["adapter.weight"] = torch.ones(2, 64)
    tensors["encoder.layers.0.mlp.fc12.weight"] = torch.ones(97, 64)
    save_file(tensors, folder / SAFE)
    text = refused(folder, r"do not fit its config.json \(nomic_bert, 3 layers\): ")
    missing, wrong, left = text.split(": ", 1)[1].split("; ")
    assert missing == "2 missing: emb_ln.bias, encoder.layers.1.attn.Wqkv.weight"
    assert wrong == (
        "1 of another shape: encoder.layers.0.mlp.fc12.weight is (97, 64), wanted (96, 64)"
    )
    assert left == "2 left over: adapter.weight, encoder.layers.7.norm1.weight"
    # unexpected tensors are ignored; missing or wrong ones are not
    text = refused(folder, "2 missing", strict=False)
    assert "1 of another shape" in text
    assert "left over" not in text


def test_a_table_with_more_rows_than_the_vocabulary(folder: Path) -> None:
    """Rows are added to pad the vocabulary, never cut."""
    config = read_config(folder)
    assert config.source["vocab_size"] > 100
    fewer = dataclasses.replace(config, vocab_size=100)
    refused(folder, r"word_embeddings\.weight is \(\d+, 64\), wanted \(100, 64\)", config=fewer)


def test_strict_false_ignores_unexpected_tensors(folder: Path) -> None:
    tensors = read_tensors(folder)
    save_file(tensors | {"adapter.weight": torch.ones(2, 64)}, folder / SAFE)
    refused(folder, "1 left over: adapter.weight")
    model = NomicBert.from_pretrained(folder, strict=False)
    assert torch.equal(model.embeddings.norm.bias, tensors["emb_ln.bias"])


def test_a_long_list_is_cut(folder: Path) -> None:
    edit_config(folder, n_layer=8, num_hidden_layers=8)
    text = refused(folder, r"\(nomic_bert, 8 layers\): 45 missing: encoder.layers.3.attn.Wqkv")
    assert text.endswith(", ...")
    assert text.count("encoder.layers.") == 20


def test_a_layout_of_the_other_model_is_refused(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "e5")
    tensors = read_tensors(tmp_path)
    build_checkpoint(tmp_path, "nomic-v1.5")
    save_file(tensors, tmp_path / SAFE)
    refused(tmp_path, "missing: .*Wqkv.*left over: .*query", strict=True)
    refused(tmp_path, "missing: .*Wqkv", strict=False)


def test_two_names_for_one_tensor(folder: Path) -> None:
    tensors = read_tensors(folder)
    twin = tensors["emb_ln.bias"].clone()
    save_file(tensors | {"bert.emb_ln.bias": twin}, folder / SAFE)
    bias = NomicBert.from_pretrained(folder).embeddings.norm.bias
    assert torch.equal(bias, tensors["emb_ln.bias"])
    twin[3] += 1e-3
    save_file(tensors | {"bert.emb_ln.bias": twin}, folder / SAFE)
    refused(folder, "holds both .*emb_ln.bias and .*emb_ln.bias, which differ: which is emb_ln.bi")


def test_no_weights_at_all(folder: Path) -> None:
    (folder / SAFE).unlink()
    refused(folder, f"holds no weights: none of {SAFE}, {INDEX}, {BIN}, .* is there")


def test_safetensors_come_first(folder: Path) -> None:
    (folder / BIN).write_bytes(b"never read")
    (folder / INDEX).write_text("never read")
    NomicBert.from_pretrained(folder)


def test_damaged_safetensors(folder: Path) -> None:
    whole = (folder / SAFE).read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    for damaged in (
        b"",
        whole[:4],
        whole[: size // 2],
        whole[:-1],
        whole + b"\0",
        struct.pack("<Q", 2**40) + whole[8:],
        whole[:8] + b"#" * size + whole[8 + size :],
        whole.replace(b'"F32"', b'"F99"', 1),
    ):
        (folder / SAFE).write_bytes(damaged)
        refused(folder, rf"{SAFE} is not a valid safetensors file: ", dtype="auto")


def test_no_floating_tensors(folder: Path) -> None:
    edit_config(folder, torch_dtype=...)
    for tensors in ({}, {"emb_ln.bias": torch.ones(64, dtype=torch.int64)}):
        save_file(tensors, folder / SAFE)
        refused(folder, r"states 3 layers, but there are only [01] tensors", dtype="auto")


@pytest.mark.parametrize("shard", ["../x.safetensors", "/x.safetensors", "a/b", "..", ""])
def test_a_shard_outside_the_folder(shard: str, tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "inner", "nomic-v1.5", weights="sharded")
    save_file({"emb_ln.bias": torch.ones(64)}, tmp_path / "x.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["emb_ln.bias"] = shard
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, rf"names the shard {shard!r}, outside its folder")


def test_shards_that_do_not_fit(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "nomic-v1.5", weights="sharded")
    first, second = sorted(folder.glob("*.safetensors"))
    one, two = read_file(first), read_file(second)
    save_file(one | {"norm1": torch.ones(1)}, first)
    save_file(two | {"norm1": torch.ones(1)}, second)
    refused(folder, "holds the tensor norm1 in two shards")
    save_file(one, first)
    second.unlink()
    refused(folder, f"names the shard '{second.name}', which is missing")
    for index in ({}, {"weight_map": []}, {"weight_map": {"emb_ln.bias": 1}}):
        (folder / INDEX).write_text(json.dumps(index))
        refused(folder, f"{INDEX} has no weight_map of tensor names to file names")
    (folder / INDEX).write_text("{")
    with pytest.raises(NomicBertError, match=f"{INDEX} is not JSON"):
        NomicBert.from_pretrained(folder)


def read_file(path: Path) -> dict[str, torch.Tensor]:
    files = TensorFiles(path.parent)
    held = json.loads((path.parent / INDEX).read_text())["weight_map"]
    return {name: files.read(name).clone() for name in files.names() if held[name] == path.name}


class Runs:
    """Unpickles into a call that creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_run(zipped: bool, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Runs(marker))).close()
    assert marker.exists()  # without weights_only the trap works
    marker.unlink()
    content = {"emb_ln.bias": torch.ones(64), "emb_ln.weight": Runs(marker)}
    (folder / SAFE).unlink()
    torch.save(content, folder / BIN, _use_new_zipfile_serialization=zipped)
    text = refused(
        folder, f"{BIN} is not a valid file of plain tensors, and nothing else is unpickled: "
    )
    assert text.endswith("Unsupported global: GLOBAL io.open")
    (folder / BIN).write_bytes(pickle.dumps(Runs(marker), protocol=2))
    refused(folder, f"{BIN} is not a valid file of plain tensors")
    assert not marker.exists()


def old_tar(file: Path) -> None:
    """The format of torch before 0.1.10."""
    with tarfile.open(file, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = pickle.dumps({} if name == "sys_info" else 0)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_no_error_advises_to_allow_code(folder: Path) -> None:
    (folder / SAFE).unlink()
    writers: list[Callable[[Path], object]] = [
        lambda file: torch.jit.script(torch.nn.Linear(2, 2)).save(str(file)),
        old_tar,
        lambda file: torch.save(torch.nn.Linear(2, 2), file),
        lambda file: torch.save(torch.nn.Linear(2, 2), file, _use_new_zipfile_serialization=False),
        lambda file: torch.save({"a": Path("x")}, file, pickle_protocol=4),
        lambda file: file.write_bytes(pickle.dumps({"a": 1})),
        lambda file: file.write_bytes(pickle.dumps({"a": Path("x")}, protocol=2)),
        lambda file: file.write_bytes(b"\x80\x02ctorch.hub\nload\n."),
    ]
    for write in writers:
        (folder / BIN).unlink(missing_ok=True)
        write(folder / BIN)
        text = refused(folder, f"{BIN} is not a valid file of plain tensors")
        for advice in ("weights_only", "safe_globals", "trust", "Weights only", "pickle_module"):
            assert advice not in text, text


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_that_was_cut_short(zipped: bool, folder: Path) -> None:
    tensors = read_tensors(folder)
    (folder / SAFE).unlink()
    torch.save(tensors, folder / BIN, _use_new_zipfile_serialization=zipped)
    whole = (folder / BIN).read_bytes()
    for size in (0, 1, 4, 30, 1000, len(whole) // 2, len(whole) - 1):
        (folder / BIN).write_bytes(whole[:size])
        text = refused(folder, f"{BIN} is not a valid file of plain tensors")
        assert "Errno" not in text
        assert "Invalid argument" not in text
        if size == 0 or (zipped and size >= 4):
            assert text.endswith(": it ends too early")


def test_a_bin_that_unpacks_to_more_than_memory(folder: Path) -> None:
    """A zip file of 100 kB may declare and hold gigabytes of zeros."""
    as_bin(folder, read_tensors(folder) | {"emb_ln.bias": torch.zeros(2**26)})
    rezipped(folder / BIN, lambda name, content: content, zipfile.ZIP_DEFLATED)
    refused(folder, rf"{BIN} is not a valid .*: 2\d\d,\d+,\d+ bytes in a file of \d\d\d,\d\d\d$")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_of_one_value_and_many_rows(zipped: bool, folder: Path) -> None:
    """Its strides are 0: a parameter of this size would be built from four bytes."""
    tensors = read_tensors(folder)
    edit_config(folder, vocab_size=10**7, pad_vocab_size_multiple=1)
    tensors["embeddings.word_embeddings.weight"] = torch.ones(1, 1).expand(10**7, 64)
    (folder / SAFE).unlink()
    torch.save(tensors, folder / BIN, _use_new_zipfile_serialization=zipped)
    with guarded():
        refused(folder, f"{BIN} is damaged: a tensor is larger than what is stored for it")


def test_sizes_in_a_pickle(folder: Path) -> None:
    """Lengths and counts that a few bytes state: torch and Python would reserve memory for them."""
    (folder / SAFE).unlink()
    many = struct.pack("<q", 2**61)
    for content in (
        b"\x80\x02\x8e" + many,  # BINBYTES8
        b"\x80\x02\x8d" + many,  # BINUNICODE8
        b"\x80\x02B" + struct.pack("<I", 2**32 - 1),  # BINBYTES
        b"\x80\x02X" + struct.pack("<I", 2**32 - 1),  # BINUNICODE
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1),  # LONG4
        b"\x80\x02}q\x01." * 1000,
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    ):
        (folder / BIN).write_bytes(content)
        with guarded():
            refused(folder, f"{BIN} (is not a valid file of plain tensors|must hold)")


def doubled(times: int, last: bytes) -> bytes:
    """A pickle of a tuple of twice the same tuple of twice ..., and an operation on it."""
    twice = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(times))
    return b"\x80\x02(K\x01K\x02tq\x00" + twice + last + b"."


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("last", [b"R", b"\x81", b"b", b""], ids=["reduce", "new", "build", "none"])
def test_a_pickle_of_doubled_tuples(zipped: bool, last: bytes, folder: Path) -> None:
    """Of few bytes, and never printed to the end."""
    tensors = {"emb_ln.bias": torch.ones(64)}
    (folder / SAFE).unlink()
    torch.save(tensors, folder / BIN, _use_new_zipfile_serialization=zipped)
    content = doubled(60, last)
    if zipped:
        rezipped(
            folder / BIN,
            lambda name, old: content if name.endswith("data.pkl") else old,
            zipfile.ZIP_STORED,
        )
    else:
        (folder / BIN).write_bytes(content)
    with guarded():
        refused(folder, f"{BIN} is not a valid file .*: values are nested too deeply")


def test_a_pickle_that_uses_a_tuple_again(folder: Path) -> None:
    """As some other tool may do it: one shape for all tensors."""
    check_depth(io.BytesIO(doubled(11, b"")))
    with pytest.raises(ValueError, match="values are nested too deeply"):
        check_depth(io.BytesIO(doubled(12, b"")))
    shared = (1, 2)
    check_depth(io.BytesIO(pickle.dumps([shared] * 1000 + [[shared, "x"]] * 1000, protocol=2)))
    deep: Any = shared
    for _ in range(50):  # nested, but each only once
        deep = (deep,)
    check_depth(io.BytesIO(pickle.dumps(deep, protocol=2)))


def test_a_storage_larger_than_memory_in_the_old_format(folder: Path) -> None:
    tensors = {"emb_ln.bias": torch.ones(64)}
    (folder / SAFE).unlink()
    torch.save(tensors, folder / BIN, _use_new_zipfile_serialization=False)
    whole = (folder / BIN).read_bytes()
    size = b"K@"  # BININT1 of 64
    assert size in whole
    for count in (2**40, 2**62):
        large = b"\x8a\x08" + struct.pack("<q", count)
        (folder / BIN).write_bytes(whole.replace(size, large))
        with guarded():
            refused(folder, f"{BIN} is not a valid file of plain tensors")


def test_a_bin_that_is_no_dictionary_of_tensors(folder: Path) -> None:
    for content in ([torch.ones(2)], torch.ones(2), {"a": [1]}, {1: torch.ones(2)}, "x"):
        as_bin(folder, content)
        refused(folder, f"{BIN} must hold a dictionary of tensors")


def test_a_bin_of_the_old_format_loads(folder: Path) -> None:
    tensors = read_tensors(folder)
    (folder / SAFE).unlink()
    torch.save(tensors, folder / BIN, _use_new_zipfile_serialization=False)
    model = NomicBert.from_pretrained(folder)
    assert torch.equal(model.embeddings.norm.bias, tensors["emb_ln.bias"])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_bin_raises_our_error(zipped: bool, tmp_path: Path, seed: int) -> None:
    buffer = io.BytesIO()
    content = {"a": torch.arange(6.0), "b": torch.ones(2, 3)}
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    whole, draw = buffer.getvalue(), random.Random(seed)
    torn = [whole[:n] for n in range(0, len(whole), max(1, len(whole) // 60))]
    for _ in range(120):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] = draw.randrange(256)
        torn.append(bytes(flipped))
    messages = []
    for damaged in (*torn, b"\x80\x02.", b"\x80\x02}", b"<!DOCTYPE html>"):
        (tmp_path / BIN).write_bytes(damaged)
        try:
            TensorFiles(tmp_path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 60  # flips inside values are not detected
    assert all(re.search(rf"{BIN} (is not a valid file|must hold)", m) for m in messages)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_not_floats_are_refused(dtype: torch.dtype, folder: Path) -> None:
    """A quantised file has the right shapes, and is garbage without its scales."""
    tensors = read_tensors(folder)
    name = "encoder.layers.1.mlp.fc2.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, folder / SAFE)
    refused(folder, f"{name} of .* holds {dtype}, torch.strided: only dense floating point")


def rezipped(file: Path, change: Callable[[str, bytes], bytes], compression: int) -> None:
    """Write the archive anew, with changed entries, as another tool may do."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def assert_loads(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The folder's weights equal those of transformers, whatever their form on disk."""
    model = NomicBert.from_pretrained(folder)
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / SAFE)
    truth = NomicBert.from_pretrained(folder)
    for name, parameter in truth.state_dict().items():
        assert torch.equal(model.state_dict()[name], parameter), name


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_bin_that_was_zipped_again(compression: int, folder: Path) -> None:
    """torch would map compressed entries as if they were the numbers."""
    tensors = read_tensors(folder)
    rezipped(as_bin(folder, tensors), lambda name, content: content, compression)
    assert_loads(folder, tensors)


def test_a_bin_without_checksums(folder: Path) -> None:
    tensors = read_tensors(folder)
    torch.serialization.set_crc32_options(False)
    try:
        as_bin(folder, tensors)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_loads(folder, tensors)


def test_a_bin_from_a_big_endian_machine(folder: Path) -> None:
    tensors = read_tensors(folder)

    def swapped(name: str, content: bytes) -> bytes:
        if name.endswith("byteorder"):
            return b"big"
        words = np.frombuffer(content, "<f4") if "/data/" in name else None
        return content if words is None else words.astype(">f4").tobytes()

    rezipped(as_bin(folder, tensors), swapped, zipfile.ZIP_STORED)
    assert_loads(folder, tensors)


def test_a_bin_of_parameters_and_of_views(folder: Path) -> None:
    tensors = read_tensors(folder)
    odd = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    whole = torch.stack([*(t for n, t in tensors.items() if n.endswith("norm1.weight"))])
    odd |= {f"encoder.layers.{i}.norm1.weight": whole[i] for i in range(len(whole))}
    name = "encoder.layers.0.mlp.fc2.weight"
    odd[name] = tensors[name].t().contiguous().t()
    as_bin(folder, odd)
    assert_loads(folder, tensors)


def test_views_of_stacked_experts_in_a_bin(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "nomic-v2-moe", num_hidden_layers=2)
    tensors = read_tensors(folder)
    as_bin(
        folder, {name: t.t().contiguous().t() if t.dim() == 2 else t for name, t in tensors.items()}
    )
    assert_loads(folder, tensors)


def test_a_bin_with_too_few_bytes_for_a_tensor(folder: Path) -> None:
    """torch would continue in the entry behind it."""
    file = as_bin(folder, read_tensors(folder))
    rezipped(file, lambda name, x: x[:-8] if name.endswith("/data/3") else x, zipfile.ZIP_STORED)
    refused(folder, f"{BIN} is (damaged: a tensor is larger than|not a valid file)")


def test_a_bin_without_values(folder: Path) -> None:
    as_bin(folder, {name: tensor.to("meta") for name, tensor in read_tensors(folder).items()})
    refused(folder, f"{BIN} has no values for .*: it was saved on 'meta'")


@pytest.mark.parametrize("name", [SAFE, BIN])
def test_weights_that_cannot_be_opened(name: str, folder: Path) -> None:
    (folder / SAFE).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name} is a folder, not a file")
