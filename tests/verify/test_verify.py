"""The comparison behind `nomicbert verify`: its oracle, its choice of reference, its verdicts.

Checkpoints are tiny except for their width, 256: see tests/parity/test_embeddings.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nomicbert import Embedder, NomicBert
from nomicbert.verify import measures, references, speed, truth
from nomicbert.verify.checks import invariance_row, tensors_row
from nomicbert.verify.formula import matryoshka, read_steps
from nomicbert.verify.oracle import oracle
from nomicbert.verify.references import Formula, Transformers, choose
from nomicbert.verify.report import Report, Row
from nomicbert.verify.run import _remarks, verify
from nomicbert.verify.texts import LENGTHS, TEXTS, Batch, cut
from nomicbert_kernels import backend as kernels
from nomicbert_kernels import values
from nomicbert_kernels.linear_torch import onednn_packs
from tests.support.checkpoints import build_checkpoint, edit_config, read_config, read_tensors
from tests.support.cpus import pretend
from tests.support.oracle import oracle_forward, oracle_matryoshka, oracle_pool, router_margins
from tests.support.rerankers import build_reranker

CPU = torch.device("cpu")
WIDE: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 2}
TOGETHER = ("nomic-v1.5", "nomic-bert-2048", "nomic-v2-moe", "bge-en", "e5", "bert-base-uncased")


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timed round: no test here depends on speed."""
    monkeypatch.setattr(speed, "ROUNDS", 1)


def build(folder: Path, variant: str, **changes: Any) -> Path:
    """A checkpoint with the keys that transformers reads, and a low length limit.

    The limit keeps tests fast, because the tiny tokenizers give a token per character.
    """
    more = {"dialect": "both"} if variant == "nomic-v1.5" else {}
    place = build_checkpoint(folder / variant, variant, **{**WIDE, **more, **changes})
    (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))
    return place


def rows(report: Report, check: str) -> list[Row]:
    return [row for row in report.rows if row.check == check]


def broken(report: Report) -> set[str]:
    return {row.check for row in report.rows if row.holds is False}


@pytest.mark.parametrize("variant", [*TOGETHER, "partial", "interleaved", "scaled", "biased"])
def test_oracle_equals_the_oracle_of_the_tests(variant: str, tmp_path: Path, seed: int) -> None:
    """Two independent implementations in float64: verify's runs per text, the tests' is padded."""
    changes: dict[str, dict[str, Any]] = {
        "partial": {"rotary_emb_fraction": 0.5},
        "interleaved": {"rotary_emb_interleaved": True},
        "scaled": {"rotary_scaling_factor": 2, "max_trained_positions": 16},
        "biased": {"qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True},
    }
    base = "nomic-v1.5" if variant in changes else variant
    folder = build_checkpoint(
        tmp_path, base, seed=seed, dialect="legacy", **changes.get(variant, {})
    )
    config, tensors = read_config(folder), read_tensors(folder)
    batch = cut(range(3, 300, 7), config["type_vocab_size"], 100)
    if variant == "scaled":  # theirs scales by the padded length, ours by each text's own
        batch = Batch([batch.ids[7]], [batch.types[7]])
    found, margins = oracle(folder, config, batch.ids, batch.types)
    arguments = batch.padded(CPU)
    mask = arguments["attention_mask"].bool()
    wanted = torch.stack([s[mask] for s in oracle_forward(config, tensors, **arguments)])
    assert found.shape == wanted.shape
    assert found.dtype == torch.float64
    assert (found - wanted).abs().max() <= 1e-9
    if variant == "nomic-v2-moe":
        assert margins is not None
        theirs = router_margins(config, tensors, **arguments)[mask]
        assert (margins - theirs).abs().max() <= 1e-9
    else:
        assert margins is None


def test_scaling_changes_the_oracle(tmp_path: Path) -> None:
    """Otherwise the case "scaled" above would compare two unscaled rotations."""
    folder = build_checkpoint(tmp_path, "nomic-v1.5", dialect="legacy", max_trained_positions=16)
    ids = [list(range(5, 69))]
    plain, _ = oracle(folder, read_config(folder), ids)
    scaled, _ = oracle(folder, read_config(folder) | {"rotary_scaling_factor": 2}, ids)
    assert (plain - scaled).abs().max() > 0.01


@pytest.mark.parametrize(
    "mode", ["mean", "cls", "max", "mean_sqrt_len", "lasttoken", "weightedmean"]
)
@pytest.mark.parametrize("schema", ["flags", "name"])
def test_pooling_by_formula(mode: str, schema: str, tmp_path: Path, seed: int) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1")
    suffix = {"mean": "_tokens", "max": "_tokens", "mean_sqrt_len": "_len_tokens", "lasttoken": ""}
    flag = f"pooling_mode_{mode.removesuffix('_len')}" + suffix.get(mode, "_token")
    flag += "s" * (mode == "weightedmean")
    pooling = {flag: True} if schema == "flags" else {"pooling_mode": mode}
    if schema == "flags":
        pooling["pooling_mode_other"] = False
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)).double()
    dense = load_file(folder / "2_Dense" / "model.safetensors")
    pair = (dense["linear.weight"], dense["linear.bias"])
    wanted = oracle_pool(hidden[None], torch.ones(1, 5), mode, dense=pair)
    found = read_steps(folder).vector(hidden)
    assert found.shape == (112,)
    assert (found - wanted[0]).abs().max() <= 1e-12
    for dim in (112, 40):
        short = matryoshka(found[None], dim)
        assert (short - oracle_matryoshka(wanted, dim)).abs().max() <= 1e-12


def test_dense_without_an_activation_setting_uses_tanh(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1")
    path = folder / "2_Dense" / "config.json"
    settings = json.loads(path.read_text())
    hidden = torch.ones(2, 64)
    plain = read_steps(folder).vector(hidden)
    del settings["activation_function"]
    path.write_text(json.dumps(settings))
    assert torch.equal(read_steps(folder).vector(hidden), plain.tanh())


def test_cut_gives_mixed_lengths_and_enough_tokens() -> None:
    batch = cut(range(10), 2, 1000)
    assert sum(batch.lengths) >= 1000
    assert batch.lengths[: len(LENGTHS)] == list(LENGTHS)
    assert {kind for text in batch.types for kind in text} == {0, 1}
    assert {kind for text in cut(range(10), 1, 10).types for kind in text} == {0}
    padded = batch.padded(CPU)
    assert padded["attention_mask"].sum() == sum(batch.lengths)
    assert padded["input_ids"][2, :33].tolist() == [*batch.ids[2], 0]


def prefixed(folder: Path) -> None:
    """Add the prefix "trunk." to all names, as a training framework does around a BERT."""
    path = folder / "model.safetensors"
    save_file({f"trunk.{name}": t for name, t in load_file(path).items()}, path)


REASONS: dict[str, tuple[str, dict[str, Any], Callable[[Path], None] | None, str]] = {
    "experts": ("nomic-v2-moe", {}, None, "it has mixtures of experts"),
    "legacy only": (
        "nomic-v1.5",
        {"dialect": "legacy"},
        None,
        "misreads its config.json: hidden_size 768 instead of 64, num_hidden_layers 12 instead",
    ),
    "theta": (
        "nomic-v1.5",
        {"dialect": "both", "rotary_emb_base": 5000},
        lambda folder: edit_config(folder, rope_parameters=...),
        "misreads its config.json: rope_theta 1000 instead of 5000",
    ),
    "prefix": (
        "nomic-bert-2048",
        {"dialect": "both"},
        None,
        r"leaves unread (37) of its tensors .* and fills at random \1 of its tensors",
    ),
    "partial": ("nomic-v1.5", {"dialect": "both", "rotary_emb_fraction": 0.5}, None, "on 8 of 16"),
    "interleaved": (
        "nomic-v1.5",
        {"dialect": "both", "rotary_emb_interleaved": True},
        None,
        "rotary angles on neighbouring dimensions",
    ),
    "biases": ("nomic-v1.5", {"dialect": "both", "qkv_proj_bias": True}, None, "has biases in"),
    "trunk of a BERT": (
        "bge-en",
        {},
        prefixed,
        r"leaves unread (\d+) of its tensors .* and fills at random \1 of",
    ),
    "float sizes": (
        "nomic-v1.5",
        {"dialect": "both"},
        lambda folder: edit_config(folder, num_hidden_layers=3.0, n_layer=3.0),
        "refuses sizes that are floats: num_hidden_layers 3.0",
    ),
}


@pytest.mark.filterwarnings("ignore::nomicbert.PoolingWarning")  # nomic-bert-2048 is bare
@pytest.mark.parametrize("name", REASONS)
def test_checkpoints_that_transformers_misreads(name: str, tmp_path: Path) -> None:
    """The report gives the reason, and the oracle is the reference, with the same bounds."""
    variant, changes, edit, reason = REASONS[name]
    folder = build(tmp_path, variant, hidden_size=64, num_hidden_layers=3, **changes)
    if edit:
        edit(folder)
    reference = choose(folder, CPU)
    assert isinstance(reference, Formula)
    assert re.search(reason, reference.reason), reference.reason
    report = verify(folder, dtypes=[torch.float32], backends=["torch"])
    assert report.reason == reference.reason
    assert any(reference.reason in note for note in report.notes)
    (hidden,) = rows(report, "hidden")
    assert hidden.holds
    assert hidden.value > 0
    assert hidden.what.startswith(f"{read_config(folder).get('n_layer', 3):.0f} layers, formula")
    assert not rows(report, "speed")


@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v1", "bge-en", "bert-base-uncased"])
def test_checkpoints_that_transformers_reads(variant: str, tmp_path: Path) -> None:
    """v1's 8192 positions, 2048 for transformers, only matter for longer texts."""
    reference = choose(build_checkpoint(tmp_path, variant), CPU)
    assert isinstance(reference, Transformers)
    assert reference.reason == ""


def test_logging_of_transformers_is_restored(tmp_path: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    choose(build_checkpoint(tmp_path, "bge-en"), CPU)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1"])
def test_a_sound_checkpoint_holds(variant: str, tmp_path: Path) -> None:
    report = verify(build(tmp_path, variant), device="cpu", backends=["reference", "torch"])
    assert [row for row in report.rows if row.holds is False] == []
    assert report.embedding_reference.startswith("sentence-transformers")
    kinds = {(row.check, row.dtype, row.backend, row.measure) for row in report.rows}
    dtypes = ("float32", "bfloat16", "float16")
    for backend in ("reference", "torch"):
        assert ("hidden", "float32", backend, "max abs") in kinds
        assert ("embedding", "float32", backend, "max abs") in kinds
        for dtype in dtypes[1:]:
            for measure in ("rms / theirs", "max / theirs"):
                assert ("hidden", dtype, backend, measure) in kinds
            assert ("embedding", dtype, backend, "least cosine") in kinds
    assert [row.dtype for row in rows(report, "invariance")] == list(dtypes)
    sizes = [row.what for row in rows(report, "matryoshka")]
    card = [f"{dim} dimensions" for dim in (256, 128, 64)]
    assert sizes == (2 * card if variant == "nomic-v1.5" else [])
    # no value is a default: each was measured
    assert all(row.value > 0 for row in rows(report, "hidden") + rows(report, "embedding"))
    assert all(0 < row.value < 1 for row in rows(report, "embedding"))
    assert all(len(row.layers) == 3 for row in rows(report, "hidden"))
    forms = [row.what for row in rows(report, "hidden") if row.dtype == "float32"]
    assert forms == 2 * ["2 layers, sdpa", "2 layers, eager"]
    (timed,) = rows(report, "speed")
    assert timed.holds is None
    assert timed.value > 0


def test_missing_and_unused_tensors_are_counted(tmp_path: Path) -> None:
    folder = build(tmp_path, "bge-en")
    model = NomicBert.from_pretrained(folder)
    row = tensors_row(folder, model)
    assert (row.what, row.value, row.holds) == ("37 taken, 2 unread", 0, True)
    layer = sum(p.numel() for p in model.layers[0].parameters())
    deeper = NomicBert(dataclasses.replace(model.config, num_hidden_layers=3))
    row = tensors_row(folder, deeper)
    assert (row.value, row.holds) == (layer, False)
    model.layers[1].to("meta")
    assert tensors_row(folder, model).holds is False


def test_vocabulary_padded_on_loading(tmp_path: Path) -> None:
    """Padding rows of the vocabulary are not counted as lost."""
    folder = build(tmp_path, "nomic-v1.5")
    path = folder / "model.safetensors"
    name = "embeddings.word_embeddings.weight"
    tensors = load_file(path)
    assert len(tensors[name]) == 384
    save_file(tensors | {name: tensors[name][:378].clone()}, path)
    edit_config(folder, vocab_size=378)
    report = verify(folder, dtypes=[torch.float32], backends=["torch"])
    assert report.broken == 0
    assert report.reason == ""
    assert rows(report, "tensors")[0].value == 0


def test_tokens_near_a_routing_boundary_are_excluded(tmp_path: Path) -> None:
    folder = build(tmp_path, "nomic-v2-moe")
    report = verify(folder, dtypes=[torch.float32, torch.bfloat16], backends=["torch"])
    assert report.broken == 0
    hidden, *half = rows(report, "hidden")
    assert half
    match = re.search(r"(\d+) tokens", hidden.what)
    assert match
    assert 700 < int(match[1]) < 2 * sum(LENGTHS)
    assert hidden.holds
    assert [row.holds for row in half] == [None, None]
    assert [row.holds for row in rows(report, "embedding")] == [True, None]


def test_without_sentence_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are pooled by formula from transformers' hidden states; the report says so."""
    find = truth.find_spec
    monkeypatch.setattr(truth, "find_spec", lambda name: None)
    folder = build(tmp_path, "conan-v1")
    report = verify(folder, dtypes=[torch.float32], backends=["torch"])
    assert report.embedding_reference.endswith("BertModel, pooled by formula")
    assert any("sentence-transformers is not installed" in note for note in report.notes)
    (row,) = rows(report, "embedding")
    assert row.holds
    assert row.value > 0
    assert rows(report, "speed")[0].what.startswith("encoder")
    assert find("sentence_transformers") is not None


def test_nan_breaks_every_bound() -> None:
    nan = torch.full((3, 4, 8), torch.nan)
    some = torch.zeros(3, 4, 8)
    some[1, 2, 3] = torch.nan
    for states in (nan, some):
        row = measures.hidden_row(states, torch.zeros(3, 4, 8), 0.0, "torch", "sdpa")
        assert row.holds is False
        assert measures.hidden_row(torch.zeros(3, 4, 8), states, 0.0, "torch", "").holds is False
    assert measures.hidden_row(some[2:], some[2:], float("nan"), "torch", "sdpa").holds is False
    assert measures.hidden_row(some[2:], some[2:], 1.0, "torch", "sdpa").holds is False
    assert measures.hidden_row(some[2:], some[2:], 0.0, "torch", "sdpa").holds is True
    unit = torch.eye(8).double()
    assert measures.embedding_row(nan[0], unit[:4], torch.float32, "torch", "").holds is False
    assert measures.embedding_row(nan[0], unit[:4], torch.bfloat16, "torch", "").holds is False
    half = measures.half_bound(torch.bfloat16)
    assert half
    truth_, theirs = torch.ones(3, 4, 8), torch.full((3, 4, 8), 1.01)
    for ours, holds in ((theirs, True), (truth_ + some, False), (truth_ + 0.03, False)):
        found = measures.half_rows(ours, theirs, truth_, half, "torch", judged=True)
        assert [row.holds for row in found] == [holds, holds]
    found = measures.half_rows(some, theirs, truth_, half, "torch", judged=False)
    assert [row.holds for row in found] == [None, None]


def test_transformers_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install ".*\[verify\]"'):
        verify("anything")


def test_texts_cover_lengths_and_scripts() -> None:
    assert len(set(TEXTS)) == len(TEXTS) == 13
    assert min(map(len, TEXTS)) < 10
    assert max(map(len, TEXTS)) > 800
    scripts = ["LATIN", "CYRILLIC", "CJK", "HIRAGANA", "ARABIC", "DEVANAGARI"]
    names = {
        unicodedata.name(character, "-").split()[0] for text in TEXTS for character in text.strip()
    }
    assert names >= set(scripts)


def test_unread_head_is_accepted(tmp_path: Path) -> None:
    """transformers does not read a classifier either, which does not affect hidden states."""
    assert references.choose(build_reranker(tmp_path), torch.device("cpu")).reason == ""


@pytest.mark.parametrize(
    ("found", "widened"), [(True, "float16 on"), (False, "bfloat16 and float16 on")]
)
def test_note_on_dtypes_computed_in_float32(
    found: bool, widened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dtypes that the CPU only stores are noted; on a GPU there are none."""
    pretend(monkeypatch, found)
    stub = SimpleNamespace(encoder=SimpleNamespace(reason=""), lacks_library="", clear=None)
    cpu, dtypes = torch.device("cpu"), (torch.float32, torch.bfloat16, torch.float16)
    (note,) = _remarks(stub, cpu, dtypes)  # type: ignore[arg-type]
    assert note.startswith(f"{widened} this CPU: the reference computes in")
    assert _remarks(stub, cpu, dtypes[:1]) == []  # type: ignore[arg-type]
    assert _remarks(stub, torch.device("cuda"), dtypes) == []  # type: ignore[arg-type]


def test_thread_counts_of_the_invariance_row(tmp_path: Path) -> None:
    """1, 2 and the current count, at most the largest count with guaranteed bits."""
    embedder = Embedder(build(tmp_path, "nomic-v1.5"), dtype=torch.bfloat16, backend="torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(13)
        row = invariance_row(embedder)
        assert torch.get_num_threads() == 13
    finally:
        torch.set_num_threads(before)
    assert row.what == "16 vectors, 1, 2 and 12 threads"
    assert row.holds is (True if onednn_packs(torch.float32) else None)


PLANTED = {
    "attention": (2, {"one row"}),
    "linear": (1, {"many rows"}),
    "pool": (2, {"moved"}),
}


@pytest.mark.parametrize("op", PLANTED)
def test_first_differing_op_is_reported(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plant an op whose last bits depend on other rows or alignment, for one thread count only."""
    threads, (kind,) = PLANTED[op]
    right = getattr(kernels.TORCH, op)

    def wrong(x: Any, *args: Any, **keywords: Any) -> torch.Tensor:
        result: torch.Tensor = right(x, *args, **keywords)
        data = values(x)
        fault = {
            "one row": data.shape[0] > 100,
            "many rows": data.shape[0] > 300,
            "moved": data.data_ptr() % 16 != 0,
        }[kind]
        return result * (1 + 2e-7) if fault and torch.get_num_threads() == threads else result

    monkeypatch.setattr(kernels, "TORCH", kernels.TORCH.replaced(**{op: wrong}))
    row = invariance_row(Embedder(build(tmp_path, "nomic-v1.5"), backend="torch"))
    said = "1 thread" if threads == 1 else "2 threads"
    assert row.what == f"{op}, {said} (16 vectors)"
    assert row.dtype == "float32"
    assert row.value > 0
    assert row.holds is (False if onednn_packs(torch.float32) else None)


def test_backend_invariant_always_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other backends have one only with oneDNN-packed weights on a CPU."""
    monkeypatch.setattr("nomicbert.verify.invariance.onednn_packs", lambda dtype: False)
    embedder = Embedder(build(tmp_path, "nomic-v1.5"), backend="torch")
    assert invariance_row(embedder).bound is None
    embedder.model._ops = dataclasses.replace(embedder.model.ops, name="invariant")
    row = invariance_row(embedder)
    assert (row.backend, row.bound) == ("invariant", 0)
