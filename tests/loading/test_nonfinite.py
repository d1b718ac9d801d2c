"""NaN and infinity in weights: one warning per load names the tensors, and no false alarms."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nomicbert import Embedder, NomicBert
from nomicbert.loading import nonfinite
from nomicbert.user_warnings import VectorWarning, WeightWarning
from tests.support.checkpoints import build_checkpoint, read_tensors

NAN, INF = float("nan"), float("inf")
SAFE = "model.safetensors"
WORDS = "embeddings.word_embeddings.weight"
OUT = "encoder.layers.0.attn.out_proj.weight"
QUERY_BIAS = "encoder.layer.0.attention.self.query.bias"
EXPERTS = "encoder.layers.1.mlp.experts.mlp.w2"
GATE = "encoder.layers.0.mlp.fc12.weight"


def spoil(folder: Path, **values: float) -> None:
    """Write values at places like `name[3]` or `name[3, 1]` of the folder's safetensors."""
    tensors = load_file(folder / SAFE)
    for place, value in values.items():
        name, _, index = place.removesuffix("]").partition("[")
        tensors[name][tuple(map(int, index.split(",")))] = value
    save_file(tensors, folder / SAFE)


def warned(load: Callable[[], Any]) -> tuple[Any, str]:
    """Return the loaded object and the text of its one warning, which points at the call's line."""
    with pytest.warns(WeightWarning) as caught:
        loaded = load()
    assert [Path(one.filename) for one in caught] == [Path(__file__)]
    return loaded, str(caught[0].message)


def found(message: str) -> list[str]:
    """The `name (count)` items of a warning."""
    listed = re.search(r"infinite in torch\.\w+: (.*?)\. Vectors", message)
    assert listed, message
    return listed[1].split(", ")


def test_nan_in_one_word(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    spoil(folder, **{f"{WORDS}[9]": NAN, f"{WORDS}[300, 5]": -INF})
    model, message = warned(lambda: NomicBert.from_pretrained(folder))
    assert message == (
        f"the weights of {folder} hold values that are NaN or infinite in torch.float32: "
        f"{WORDS} (65). Vectors computed from them will be NaN. Download the checkpoint again; if "
        "the values are still there, report them to its authors"
    )
    # it is still loaded, with the values on disk
    assert torch.equal(
        model.embeddings.word.weight.isfinite(), read_tensors(folder)[WORDS].isfinite()
    )
    with torch.inference_mode():
        good, bad = model(torch.tensor([[5, 6, 7], [5, 9, 7]])).last_hidden_state
    assert good.isfinite().all()
    assert bad.isnan().all()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_value_of_a_fused_parameter(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """query, key and value are one parameter: the warning names only the broken part."""
    folder = build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    spoil(folder, **{f"{QUERY_BIAS}[17]": value})
    _, message = warned(lambda: NomicBert.from_pretrained(folder, dtype=dtype))
    assert found(message) == [f"{QUERY_BIAS} (1)"]


@pytest.mark.parametrize("weights", ["bin", "sharded"])
def test_other_files(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1, weights=weights)
    for file in folder.glob("model-*.safetensors"):
        tensors = load_file(file)
        tensors.get(GATE, torch.empty(1, 1))[0, :3] = INF
        save_file(tensors, file)
    if weights == "bin":
        tensors = read_tensors(folder)
        tensors[GATE][0, :3] = INF
        torch.save(tensors, folder / "pytorch_model.bin")
    _, message = warned(lambda: NomicBert.from_pretrained(folder))
    assert found(message) == [f"{GATE} (3)"]


def test_last_value_of_transposed_experts(tmp_path: Path) -> None:
    """Experts are transposed in memory; the warning uses the names on disk, prefix included."""
    folder = build_checkpoint(tmp_path, "nomic-v2-moe", num_hidden_layers=2)
    spoil(folder, **{f"{EXPERTS}[-1, -1]": NAN})
    _, message = warned(lambda: NomicBert.from_pretrained(folder))
    assert found(message) == [f"{EXPERTS} (1)"]
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(folder / SAFE).items()}
    save_file(tensors, folder / SAFE)
    _, message = warned(lambda: NomicBert.from_pretrained(folder))
    assert found(message) == [f"bert.{EXPERTS} (1)"]


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    tensors = {name: torch.full_like(t, NAN) for name, t in load_file(folder / SAFE).items()}
    save_file(tensors, folder / SAFE)
    _, message = warned(lambda: NomicBert.from_pretrained(folder))
    *first, last = found(message)
    counts = {f"{name} ({tensor.numel()})" for name, tensor in tensors.items()}
    assert len(first) == 4
    assert {*first, last.partition(" and ")[0]} < counts
    assert last.endswith(f" and {len(tensors) - 5} more tensors")
    for name in list(tensors)[6:]:
        tensors[name].zero_()
    save_file(tensors, folder / SAFE)
    _, message = warned(lambda: NomicBert.from_pretrained(folder))
    assert found(message)[-1].endswith(") and 1 more tensor")


def test_a_dense_layer(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    spoil(folder / "2_Dense", **{"linear.weight[111, 63]": NAN, "linear.bias[0]": INF})
    embedder, message = warned(lambda: Embedder.from_pretrained(folder))
    assert message.startswith(f"the weights of {folder / '2_Dense'} hold values that are NaN or ")
    assert found(message) == ["linear.weight (1)", "linear.bias (1)"]
    with pytest.warns(VectorWarning, match="1 rows computed from 1 texts hold NaN"):
        vector = embedder.encode("a")
    assert vector[1:-1].all()  # the other columns are finite


def test_warning_points_at_the_embedder_call(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    spoil(folder, **{f"{QUERY_BIAS}[0]": NAN})
    assert found(warned(lambda: Embedder(folder))[1]) == [f"{QUERY_BIAS} (1)"]


@pytest.mark.parametrize(
    ("variant", "dtype", "value"),
    [
        ("nomic-v1.5", torch.float32, 3e38),
        ("nomic-v1.5", torch.float32, -3e38),
        ("nomic-v1.5", torch.bfloat16, 3e38),
        ("gte", torch.float16, 6e4),
        ("nomic-v2-moe", torch.float16, -6e4),
    ],
)
def test_overflowing_sums_do_not_warn(
    variant: str, dtype: torch.dtype, value: float, tmp_path: Path
) -> None:
    """The sum of each parameter overflows, but every value is finite."""
    folder = build_checkpoint(tmp_path, variant, num_hidden_layers=2)
    tensors = load_file(folder / SAFE)
    for tensor in tensors.values():
        tensor.fill_(value if tensor.is_floating_point() else 0)
    save_file(tensors, folder / SAFE)
    model = NomicBert.from_pretrained(folder, dtype=dtype)  # a warning would be an error
    for parameter in model.parameters():
        assert parameter.isfinite().all()
        assert parameter.numel() == 1 or not parameter.sum().isfinite()


def test_too_large_for_the_dtype(tmp_path: Path) -> None:
    """A finite value may become infinite by the conversion to a narrower dtype."""
    folder = build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    spoil(folder, **{f"{OUT}[3, 4]": 7e4, f"{OUT}[3, 5]": -7e4, f"{OUT}[3, 6]": 6e4})
    _, message = warned(lambda: NomicBert.from_pretrained(folder, dtype=torch.float16))
    assert found(message) == [f"{OUT} (2)"]
    assert message.endswith("only too large for torch.float16 need dtype=torch.float32)")
    for dtype in (torch.float32, torch.bfloat16):
        NomicBert.from_pretrained(folder, dtype=dtype)


def test_unread_tensors_are_not_checked(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "e5", num_hidden_layers=1)
    spoil(folder, **{"pooler.dense.bias[1]": NAN})
    NomicBert.from_pretrained(folder)
    _, message = warned(lambda: NomicBert.from_pretrained(folder, add_pooling_layer=True))
    assert found(message) == ["pooler.dense.bias (1)"]


def allocated(work: Callable[[], Any]) -> int:
    """Bytes of the largest temporary tensor, including those inside torch functions."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    return max((event.self_cpu_memory_usage for event in profiled.events()), default=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_second_copy(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = torch.zeros(512, 256, dtype=dtype)
    monkeypatch.setattr(nonfinite, "PIECE", 1000)

    def read(name: str) -> Tensor:
        return parameter

    assert nonfinite.not_finite(parameter, read, ["a"]) == {}
    assert allocated(lambda: nonfinite.not_finite(parameter, read, ["a"])) <= 64
    parameter[::2, 3] = NAN
    parameter[511, 255] = INF
    assert nonfinite.not_finite(parameter, read, ["a"]) == {"a": 257}
    assert 1000 <= allocated(lambda: nonfinite.not_finite(parameter, read, ["a"])) <= 8000


def test_nothing_at_all() -> None:
    assert nonfinite.not_finite(torch.empty(0, 3), lambda name: torch.empty(0, 3), ["a"]) == {}
