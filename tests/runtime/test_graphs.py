"""runtime.graphs on a CPU: padded buckets are exact, and stale graphs are discarded.

The kernels run in Triton's interpreter. Instead of replaying a graph, the same work is repeated on
the same buffers, so it reads and writes the same memory as a graph would. Tests that need a GPU are
in tests/gpu/test_graphs.py.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nomicbert import Embedder
from nomicbert.modeling.packing import pack
from nomicbert.runtime import graphs
from nomicbert.runtime.graph_bucket import Key, filled_up, layout, parts_of
from nomicbert.runtime.graphs import Graphs
from nomicbert.vectors.pooling import Finish
from nomicbert.vectors.steps import Dropout
from nomicbert_kernels.backend import TORCH
from nomicbert_kernels.tiling import most_tiles, tile_rows, tile_table
from tests.ops.cases import INTERPRETS
from tests.support.checkpoints import build_checkpoint

if not INTERPRETS:
    pytest.skip("triton is not interpreted here: see tests/gpu", allow_module_level=True)

VARIANTS = ("nomic-v1.5", "conan-v1", "bge-en", "nomic-v2-moe")


class Again:
    """Repeats the work instead of replaying a graph, and counts recordings and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.recorded += 1
        result = work()

        def replay() -> None:
            self.replayed += 1
            result.fill_(torch.nan)
            result.copy_(work())

        return result, replay


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enable graphs on a CPU, with small buckets."""
    monkeypatch.setattr(graphs, "records", lambda model: True)
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphs, "BUCKETS", (16, 64))


def load(folder: Path, variant: str) -> tuple[Embedder, Graphs, Again]:
    build_checkpoint(folder, variant, num_hidden_layers=1)
    embedder = Embedder.from_pretrained(folder, backend="triton")
    found, again = Graphs(), Again()
    found._recorder = lambda: again
    return embedder, found, again


def texts_of(*lengths: int) -> list[list[int]]:
    return [[(7 * i + 3 * n) % 90 + 5 for i in range(n)] for n in lengths]


def eager(embedder: Embedder, texts: Sequence[Sequence[int]], finish: Finish) -> Tensor:
    found: Tensor = embedder.embedding_model(pack(texts), finish)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_bits_equal_those_without_graphs(variant: str, tmp_path: Path) -> None:
    """Also after other batches have used the buffers."""
    embedder, run, again = load(tmp_path, variant)
    mixtures = [(9, 2), (40, 4, 4, 1), (5,), (33, 20), (1,)]
    runs = [(Finish(), lengths) for lengths in mixtures]
    if variant == "nomic-v1.5":  # graphs of their own
        runs += [(Finish(unnormalized=True), (5,)), (Finish(matryoshka_dim=8), (9, 2))]
    for finish, lengths in runs:
        texts = texts_of(*lengths)
        found = run(embedder.embedding_model, texts, finish)
        assert torch.equal(found, eager(embedder, texts, finish)), (lengths, finish)
    # both buckets, and one for each other form
    assert again.recorded == 2 + len(runs) - len(mixtures)
    assert again.replayed == len(runs)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.sampled_from([16, 32, 64, 128]))
def test_tile_tables_fit(lengths: list[int], rows: int) -> None:
    """For descending lengths, with and without fillers."""
    falling = sorted(lengths, reverse=True)
    for least in (0, 1):
        tokens = sum(lengths) + rows
        key = Key(tokens, rows, least, Finish())
        for order in (
            (falling, filled_up(key, falling))
            if key.holds(sum(lengths), len(lengths))
            else (falling,)
        ):
            table = tile_table(np.array(order), rows)
            assert len(table) <= most_tiles(sum(order), rows)
            assert table[:, 1].sum() == sum(order)


@given(st.lists(st.integers(1, 70), max_size=9), st.sampled_from([16, 64]), st.sampled_from([0, 1]))
def test_layout(lengths: list[int], tile: int, least: int) -> None:
    """All tokens of the bucket belong to a text, and the real texts come first."""
    key = Key(64, tile, least, Finish())
    lengths.sort(reverse=True)
    while not key.holds(sum(lengths), len(lengths)):
        lengths.pop(0)
    host, parts = layout(key, texts_of(*lengths)), parts_of(key)
    ids, places, text, offsets, table = (host[part] for part in parts)
    used, every = sum(lengths), np.diff(offsets)
    flat = [number for one in texts_of(*lengths) for number in one]
    assert ids.tolist() == flat + [0] * (key.tokens - used)
    assert len(every) == key.texts
    assert every[: len(lengths)].tolist() == lengths
    assert every[len(lengths) :].min() >= least
    assert every[len(lengths) :].max() <= tile
    assert offsets[-1] == key.tokens
    assert places.tolist() == [i for n in every for i in range(n)]
    assert text.tolist() == [i for i, n in enumerate(every) for _ in range(n)]
    tiles = table.reshape(-1, 4)
    covered = [t for first, count, _, _ in tiles for t in range(first, first + count)]
    assert sorted(covered) == list(range(key.tokens))


def test_key_holds() -> None:
    """By hand: 8 texts in 64 tokens and 1 filler, which has at least `least` tokens."""
    one, none = (Key(64, 64, least, Finish()) for least in (1, 0))
    assert one.texts == none.texts == 9
    assert one.holds(56, 1)
    assert not one.holds(57, 1)
    assert one.holds(63, 8)
    assert not one.holds(64, 8)
    assert none.holds(64, 1)
    assert none.holds(64, 8)
    assert not none.holds(65, 8)
    assert not none.holds(9, 9)


@pytest.mark.parametrize(
    ("hidden", "inner", "act", "largest"),
    [
        (768, 3072, "swiglu", 5632),
        (768, 3072, "gelu", 5632),
        (1024, 4096, "gelu", 4096),
        (384, 1536, "gelu", 16896),
    ],
)
def test_buckets_of_a_model(
    hidden: int, inner: int, act: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only sizes whose launches would take longer than their kernels."""
    monkeypatch.undo()
    config = SimpleNamespace(hidden_size=hidden, intermediate_size=inner, hidden_act=act)
    found = graphs.buckets(config)  # type: ignore[arg-type]
    assert found == [tokens for tokens in graphs.BUCKETS if tokens <= largest]
    assert found[-1] == largest


@torch.inference_mode()
def test_batches_without_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "BUCKETS", (16,))
    embedder, run, again = load(tmp_path, "nomic-v1.5")
    for lengths in ((), (17,), (3, 0), (1, 1, 1), (2, 9)):
        texts = texts_of(*lengths)
        found = run(embedder.embedding_model, texts, Finish())
        assert torch.equal(found, eager(embedder, texts, Finish()))
    assert again.recorded == 0


@torch.inference_mode()
def test_scaled_rotary_angles_run_without_a_graph(tmp_path: Path) -> None:
    """A text beyond the trained length needs other angles than those in a graph."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1, max_trained_positions=20)
    embedder = Embedder(tmp_path, backend="triton", rotary_scaling_factor=2)
    run, again = Graphs(), Again()
    run._recorder = lambda: again
    for length in (20, 21, 20, 21, 20):
        texts = texts_of(length, 4)
        found = run(embedder.embedding_model, texts, Finish())
        assert torch.equal(found, eager(embedder, texts, Finish()))
    assert again.recorded == 1
    assert again.replayed == 3


@torch.inference_mode()
def test_fewer_positions_than_a_tile_has_tokens(tmp_path: Path) -> None:
    """Fillers would have positions that the checkpoint does not have."""
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1, max_position_embeddings=12)
    embedder = Embedder(tmp_path, backend="triton")
    run, again = Graphs(), Again()
    run._recorder = lambda: again
    texts = texts_of(12)
    found = run(embedder.embedding_model, texts, Finish())
    assert torch.equal(found, eager(embedder, texts, Finish()))
    assert again.recorded == 0


@torch.inference_mode()
def test_too_long_for_learned_positions(tmp_path: Path) -> None:
    embedder, run, _ = load(tmp_path, "conan-v1")
    most = embedder.model.config.max_position_embeddings
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{most + 1} positions are more than the {most}"):
            run(embedder.embedding_model, texts_of(most + 1), Finish())


@pytest.mark.parametrize(
    "change", ["in place", "moved", "replaced", "half", "dense", "step", "mode", "unit", "table"]
)
def test_parameters_that_change(change: str, tmp_path: Path) -> None:
    embedder, run, again = load(tmp_path, "conan-v1")
    texts, model = texts_of(5, 3), embedder.model
    with torch.inference_mode():
        for _ in range(2):
            before = run(embedder.embedding_model, texts, Finish())
    weight = model.layers[0].attention.out.weight
    with torch.no_grad():
        if change == "in place":
            weight.mul_(1.5)
        if change == "moved":
            weight.data = weight.data * 1.5
        if change == "replaced":
            model.layers[0].attention.out = copy.deepcopy(model.layers[0].attention.out)
            model.layers[0].attention.out.weight.mul_(1.5)
        if change == "table":
            out = model.layers[0].attention.out
            out._parameters = {name: nn.Parameter(p * 1.5) for name, p in out.named_parameters()}
        if change == "half":
            model.half().float()
        if change == "mode":
            embedder.pooling.modes = ("max",)
        if change == "step":
            embedder.pooling.steps[0].activation = "Tanh"
        if change == "unit":
            embedder.pooling.normalize = not embedder.pooling.normalize
        if change == "dense":
            linear = embedder.pooling.steps[0].linear
            linear.weight = nn.Parameter(linear.weight * 2)
    with torch.inference_mode():
        found = run(embedder.embedding_model, texts, Finish())
        assert torch.equal(found, eager(embedder, texts, Finish()))
    assert not torch.equal(found, before)
    # parameters that are read in place need no new graph
    assert again.recorded == (1 if change == "in place" else 2)


def test_modules_in_training_are_not_recorded(tmp_path: Path) -> None:
    """Dropout after pooling would be replayed with the numbers that were drawn once."""
    embedder, run, again = load(tmp_path, "conan-v1")
    embedder.pooling.steps.append(Dropout(0.5).eval())
    model, texts = embedder.embedding_model, texts_of(5, 3)
    with torch.inference_mode():
        quiet = run(model, texts, Finish())
        assert again.recorded == 1
        embedder.pooling.steps[1].train()
        drawn = [run(model, texts, Finish()) for _ in range(2)]
        assert not torch.equal(*drawn)
        embedder.pooling.eval()
        assert torch.equal(run(model, texts, Finish()), quiet)
    assert (again.recorded, again.replayed) == (1, 2)  # the first run, and the last


@pytest.mark.parametrize("place", ["layer", "module", "model", "forward", "all"])
def test_hooks_are_not_replayed(place: str, tmp_path: Path) -> None:
    """A graph from before a hook is not used while the hook is there, and is afterwards."""
    embedder, run, again = load(tmp_path, "nomic-v1.5")
    texts, model = texts_of(5, 3), embedder.embedding_model
    layer = model.encoder.layers[0]
    with torch.inference_mode():
        before = run(model, texts, Finish())
    ran = []

    def hook(*_: object) -> None:
        ran.append(1)

    if place == "forward":
        plain = layer.mlp.down.forward
        layer.mlp.down.forward = lambda x: hook() or plain(x)
        handle = SimpleNamespace(remove=lambda: vars(layer.mlp.down).pop("forward"))
    elif place == "all":
        handle = nn.modules.module.register_module_forward_hook(hook)
    else:
        hooked = {"layer": layer.mlp.down, "module": layer, "model": model}[place]
        handle = hooked.register_forward_hook(hook)
    with torch.inference_mode():
        for _ in range(2):
            ran.clear()
            assert (run(model, texts, Finish()) - before).abs().max() <= 1e-5
            assert ran
    assert (again.recorded, again.replayed) == (1, 1)
    handle.remove()
    ran.clear()
    with torch.inference_mode():
        assert torch.equal(run(model, texts, Finish()), before)
    assert not ran
    assert (again.recorded, again.replayed) == (1, 2)


def test_replaced_layers_are_not_recorded(tmp_path: Path) -> None:
    """A layer of another class may compute something else with each call."""
    embedder, run, again = load(tmp_path, "nomic-v1.5")
    texts, model = texts_of(5, 3), embedder.embedding_model

    class Switched(nn.Linear):
        on = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2 if self.on else 1)

    old = model.encoder.layers[0].mlp.down
    layer = Switched(old.in_features, old.out_features, old.bias is not None).eval()
    layer.load_state_dict(old.state_dict())
    with torch.inference_mode():
        before = run(model, texts, Finish())
        model.encoder.layers[0].mlp.down = layer
        assert (run(model, texts, Finish()) - before).abs().max() <= 1e-5
        layer.on = True
        found = run(model, texts, Finish())
        assert torch.equal(found, eager(embedder, texts, Finish()))
        assert (found - before).abs().max() > 1e-2
    assert (again.recorded, again.replayed) == (1, 1)


@torch.inference_mode()
def test_limit_of_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, run, again = load(tmp_path, "nomic-v1.5")
    monkeypatch.setattr(graphs, "MOST", 2)
    for dim in (1, 2, 1, 3, 3):
        run(embedder.embedding_model, texts_of(3), Finish(truncate_dim=dim))
    # graphs share memory, so both are discarded when a third exceeds the limit
    assert [key.finish.truncate_dim for key in run._kept] == [3]
    assert again.recorded == 3


@torch.inference_mode()
def test_graphs_are_freed_off_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are freed with the first batch on another device."""
    embedder, run, _ = load(tmp_path, "nomic-v1.5")
    run(embedder.embedding_model, texts_of(3), Finish())
    assert run._kept
    monkeypatch.setattr(graphs, "records", lambda model: False)
    run(embedder.embedding_model, texts_of(3), Finish())
    assert not run._kept


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
    RuntimeError("CUDA error: out of memory"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "driver"])
@torch.inference_mode()
def test_no_memory_for_a_graph(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch and later ones of its size run without a graph; smaller ones use graphs."""
    embedder, run, again = load(tmp_path, "nomic-v1.5")
    few, many = texts_of(3), texts_of(20)
    wanted = {len(texts[0]): eager(embedder, texts, Finish()) for texts in (few, many)}
    run(embedder.embedding_model, few, Finish())
    tried = []

    def full(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        tried.append(1)
        raise error

    run._record = full
    assert torch.equal(run(embedder.embedding_model, many, Finish()), wanted[20])
    assert not run._kept
    assert "no memory for a graph of 64 tokens" in caplog.text
    for texts in (many, few, many, few):
        found = run(embedder.embedding_model, texts, Finish())
        assert torch.equal(found, wanted[len(texts[0])])
    assert [key.tokens for key in run._kept] == [16]
    assert (len(tried), again.recorded) == (1, 2)
    run.clear()
    run(embedder.embedding_model, many, Finish())
    assert [key.tokens for key in run._kept] == [64]


@torch.inference_mode()
def test_other_errors_are_raised(tmp_path: Path) -> None:
    embedder, run, _ = load(tmp_path, "nomic-v1.5")
    run(embedder.embedding_model, texts_of(3), Finish())

    def lost(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        raise RuntimeError("CUDA error: device lost")

    run._record = lost
    with pytest.raises(RuntimeError, match="device lost"):
        run(embedder.embedding_model, texts_of(20), Finish())


@torch.inference_mode()
def test_through_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedder keeps graphs from call to call."""
    embedder, run, again = load(tmp_path, "nomic-v1.5")
    text = "the river is long"
    with monkeypatch.context() as without:
        without.setattr(graphs, "records", lambda model: False)
        wanted = embedder.encode(text, prompt="")
    monkeypatch.setattr(embedder, "graphs", run)
    for _ in range(3):
        assert np.array_equal(embedder.encode(text, prompt=""), wanted)
    assert (again.recorded, again.replayed) == (1, 3)


@torch.inference_mode()
def test_no_graphs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs left from a GPU are freed with the next call."""
    embedder, run, _ = load(tmp_path, "nomic-v1.5")
    monkeypatch.setattr(embedder, "graphs", run)
    wanted = embedder.encode("the river", prompt="")
    assert run._kept
    monkeypatch.setattr(graphs, "DEVICES", ("cuda",))

    def called(*_: object) -> Tensor:
        raise AssertionError("a CPU has no graphs")

    monkeypatch.setattr(Graphs, "__call__", called)
    assert np.array_equal(embedder.encode("the river", prompt=""), wanted)
    assert not run._kept


def test_two_threads(tmp_path: Path) -> None:
    """The buffers hold one batch at a time: both threads get their own vectors."""
    embedder, run, again = load(tmp_path, "nomic-v1.5")
    batches = {name: texts_of(*lengths) for name, lengths in (("a", (5, 2)), ("b", (9, 1)))}
    with torch.inference_mode():
        wanted = {name: eager(embedder, texts, Finish()) for name, texts in batches.items()}
        # triton's interpreter is not thread-safe: recorded work runs under a lock
        run(embedder.embedding_model, batches["a"], Finish())
    wrong: list[str] = []

    def work(name: str) -> None:
        with torch.inference_mode():
            for _ in range(4):
                found = run(embedder.embedding_model, batches[name], Finish())
                if not torch.equal(found, wanted[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert again.recorded == 1


def test_conditions_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that draws dropout is not recorded: its draws would be replayed."""
    monkeypatch.undo()
    ops = SimpleNamespace(name="triton")
    fine = {"device": torch.device("cuda"), "ops": ops, "training": False}
    with torch.no_grad():
        assert graphs.records(SimpleNamespace(**fine))  # type: ignore[arg-type]
        for change in ({"training": True}, {"device": torch.device("cpu")}, {"ops": TORCH}):
            assert not graphs.records(SimpleNamespace(**fine | change))  # type: ignore[arg-type]
        with monkeypatch.context() as within:
            within.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
            assert not graphs.records(SimpleNamespace(**fine))  # type: ignore[arg-type]
        monkeypatch.setenv(graphs.SWITCH, "0")
        assert not graphs.records(SimpleNamespace(**fine))  # type: ignore[arg-type]
    monkeypatch.delenv(graphs.SWITCH)
    assert not graphs.records(SimpleNamespace(**fine))  # type: ignore[arg-type]


def test_copies_do_not_share_graphs() -> None:
    run = Graphs()
    run._made_for = ("triton",)
    for other in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        assert isinstance(other, Graphs)
        assert other._made_for == ()


def test_tile_of_a_bucket_depends_on_its_texts(tmp_path: Path) -> None:
    """Long texts have other tiles, so another graph."""
    embedder, run, _ = load(tmp_path, "nomic-v1.5")
    model = embedder.model
    size, dtype, device = model.config.head_dim, model.compute_dtype, model.device
    key = run._key(embedder.embedding_model, texts_of(5), Finish())
    assert key == Key(16, tile_rows(5, size, dtype, device), 0, Finish())
    assert run._key(embedder.embedding_model, texts_of(17), Finish()) == key._replace(tokens=64)


@pytest.mark.parametrize(("mode", "least"), [("mean", 0), ("cls", 1), ("lasttoken", 1)])
def test_fillers_have_the_tokens_that_pooling_reads(mode: str, least: int, tmp_path: Path) -> None:
    embedder, run, _ = load(tmp_path, "nomic-v1.5")
    embedder.pooling.modes = (mode,)  # type: ignore[assignment]
    key = run._key(embedder.embedding_model, texts_of(5), Finish())
    assert key
    assert key.least == least
    assert filled_up(key, [5])[1:].min() == least
