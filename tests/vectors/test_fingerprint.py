"""The fingerprint of a vector space: equal where vectors are, another wherever they may not be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nomicbert import Embedder, EncoderConfig, NomicBert
from nomicbert.vectors import fingerprint
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.fingerprint import Fingerprint, matches
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert.vectors.steps import Dense, Dropout, LayerNorm, Normalize, Step
from nomicbert_kernels.linear_int8 import why_not
from tests.support.checkpoints import build_checkpoint, edit_config
from tests.support.module_folders import change

VARIANTS = ("nomic-v1.5", "nomic-v1", "nomic-v2-moe", "conan-v1", "bge-en", "minilm", "gte")


def of(embedder: Embedder, finish: Finish = Finish(), prompt: str = "") -> str:  # noqa: B008
    return Fingerprint.of(embedder.embedding_model, embedder.tokenizer).of_call(finish, prompt)


def test_form() -> None:
    found = Fingerprint("0" * 64, 64, False, True).of_call(Finish(), "search_query: ")
    space, dot, prompt = found.partition(".")
    assert (len(space), dot, len(prompt)) == (32, ".", 8)
    assert set(space + prompt) <= set("0123456789abcdef")


def test_matches() -> None:
    a, b = "0" * 32, "1" * 32
    for expected, found, wanted in (
        (f"{a}.0000000a", f"{a}.0000000a", True),
        (f"{a}.0000000a", f"{a}.0000000b", False),
        (f"{a}.0000000a", f"{b}.0000000a", False),
        (a, f"{a}.0000000b", True),
        (a, f"{b}.0000000b", False),
        (a, a, True),
        (f"{a}.0000000a", a, False),
        (a[:-1], f"{a}.0000000b", False),
        ("", f"{a}.0000000b", False),
        (f"{a}.", f"{a}.0000000b", False),
    ):
        assert matches(expected, found) == wanted, (expected, found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_checkpoint_in_every_form(variant: str, tmp_path: Path) -> None:
    """Formats of the weights, dialects of config.json, another folder, a saved copy."""
    dialects = ("legacy", "native", "both") if variant in ("nomic-v1.5", "nomic-v1") else (None,)
    forms: list[dict[str, Any]] = [{"dialect": dialect} for dialect in dialects]
    forms += [{"weights": weights} for weights in ("safetensors", "bin", "sharded")]
    seen = []
    for number, form in enumerate(forms):
        folder = tmp_path / str(number)
        build_checkpoint(folder, variant, num_hidden_layers=2, **form)
        embedder = Embedder(folder)
        embedder.save_pretrained(tmp_path / f"{number}-saved")
        seen += [of(one) for one in (embedder, Embedder(folder), Embedder(f"{folder}-saved"))]
    assert len(set(seen)) == 1, seen
    embedder.max_seq_length = 9
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    assert of(embedder) == seen[0]
    torch.set_num_threads(before)


def test_both_files_of_a_vocabulary(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "minilm", num_hidden_layers=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/tokenizer.json").unlink()
    assert (tmp_path / "b/vocab.txt").exists()
    embedder = Embedder(tmp_path / "b")
    embedder.save_pretrained(tmp_path / "c")
    assert of(embedder) == of(Embedder(tmp_path / "c"))


def test_a_pooler_is_no_part_of_it(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "minilm", num_hidden_layers=1)
    embedder = Embedder(tmp_path / "a", add_pooling_layer=True)
    assert embedder.model.pooler is not None
    assert of(embedder) == of(Embedder(tmp_path / "a"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("named") / "a", "conan-v1", num_hidden_layers=1)


def test_every_element_of_every_parameter(folder: Path) -> None:
    """One bit of an element in the middle of each; then back."""
    embedder = Embedder(folder)
    seen = {of(embedder)}
    parameters = [*embedder.embedding_model.parameters()]
    for parameter in parameters:
        flat = parameter.data.view(-1).view(torch.int32)
        flat[len(flat) // 2] ^= 1
        seen.add(of(embedder))
        flat[len(flat) // 2] ^= 1
    assert len(seen) == len(parameters) + 1
    # each byte of an element, and the first and the last element
    flat = parameters[0].data.view(-1).view(torch.int32)
    for place, bit in ((0, 1), (-1, 1), (5, 1 << 8), (5, 1 << 16), (5, 1 << 30)):
        flat[place] ^= bit
        seen.add(of(embedder))
    assert len(seen) == len(parameters) + 6


def test_parameters_that_change_places(folder: Path) -> None:
    """The same values under other names, or in another shape, or in another layout of memory."""
    embedder = Embedder(folder)
    model, before = embedder.embedding_model, of(embedder)
    norm = model.encoder.layers[0].mlp_norm  # type: ignore[union-attr]
    norm.weight, norm.bias = norm.bias, norm.weight
    assert of(embedder) != before
    norm.weight, norm.bias = norm.bias, norm.weight
    word = model.encoder.embeddings.word
    word.weight = nn.Parameter(word.weight.detach().T.contiguous().T)
    assert not word.weight.is_contiguous()
    assert of(embedder) == before
    word.weight = nn.Parameter(word.weight.detach().reshape(-1, 2 * word.embedding_dim))
    assert of(embedder) != before


def edit_vocabulary(copy: Path) -> None:
    file = copy / "tokenizer.json"
    raw = json.loads(file.read_text("utf-8"))
    vocab = raw["model"]["vocab"]
    vocab["instead"] = vocab.pop([*vocab][-1])
    file.write_text(json.dumps(raw), "utf-8")


def edit_template(copy: Path) -> None:
    file = copy / "tokenizer.json"
    raw = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(raw | {"post_processor": None}), "utf-8")
    change(copy / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def edit_weight(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7, 7] += 0.5
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})


EDITS: dict[str, Callable[[Path], object]] = {
    "weight": edit_weight,
    "vocabulary": edit_vocabulary,
    "template": edit_template,
    "splits special": lambda copy: change(
        copy / "tokenizer_config.json", split_special_tokens=True
    ),
    "cuts start": lambda copy: change(copy / "tokenizer_config.json", truncation_side="left"),
    "lower case": lambda copy: change(copy / "sentence_bert_config.json", do_lower_case=True),
    "eps": lambda copy: edit_config(copy, layer_norm_eps=1e-6),
    "heads": lambda copy: edit_config(copy, num_attention_heads=2),
    "act": lambda copy: edit_config(copy, hidden_act="gelu_new"),
    "mode": lambda copy: change(copy / "1_Pooling/config.json", pooling_mode="max"),
    "include_prompt": lambda copy: change(copy / "1_Pooling/config.json", include_prompt=False),
    "Dense activation": lambda copy: change(
        copy / "2_Dense/config.json", activation_function="torch.nn.modules.activation.ReLU"
    ),
}


def test_every_setting_of_a_folder(folder: Path, tmp_path: Path) -> None:
    seen = {"none": of(Embedder(folder))}
    for name, edit in EDITS.items():
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        edit(copy)
        seen[name] = of(Embedder(copy))
    assert len(set(seen.values())) == len(EDITS) + 1, seen
    assert len({found.partition(".")[0] for found in seen.values()}) == len(EDITS) + 1


def test_special_tokens_count_where_a_prompt_is_left_out(folder: Path) -> None:
    embedder = Embedder(folder)
    for include in (True, False):
        embedder.pooling.include_prompt = include
        before, known = of(embedder), embedder.tokenizer.special
        embedder.tokenizer.special = known - {max(known)}
        assert (of(embedder) == before) == include
        embedder.tokenizer.special = known


# a value other than the one in CONFIG
CHANGED: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-5,
    "hidden_act": "swiglu",
    "qkv_bias": True,
    "mlp_up_bias": False,
    "mlp_down_bias": False,
    "vocab_size": 91,
    "hidden_size": 64,
    "intermediate_size": 48,
    "type_vocab_size": 3,
    "rotary_dim": 4,
    "rope_theta": 10001.0,
    "rotary_interleaved": True,
    "rotary_scaling_factor": 2.5,
    "max_trained_positions": 65,
    "num_experts": 3,
    "moe_top_k": 1,
}
NO_EFFECT = {
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.03,
    "pad_token_id": 5,
    "source": {"architectures": ["NomicBertModel"]},
    "model_type": "bert",  # both compute the same with the same settings
}
CONFIG = EncoderConfig(
    "nomic_bert", 90, 32, 2, 4, 64, 2, 128, 1e-12, qkv_bias=False, rotary_dim=8,
    rotary_scaling_factor=2.0, max_trained_positions=64, num_experts=2, moe_top_k=2,
)  # fmt: skip


def architecture(config: EncoderConfig) -> Any:
    """What is named of a config: the settings, and the parameters' names and shapes."""
    model = NomicBert(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return fingerprint._architecture(config), shapes


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EncoderConfig)])
def test_every_field_of_the_config(name: str) -> None:
    """A field that is new must be entered above, and named if it changes vectors."""
    assert (name in CHANGED) != (name in NO_EFFECT)
    value = (CHANGED | NO_EFFECT)[name]
    assert getattr(CONFIG, name) != value
    before, after = map(architecture, (CONFIG, dataclasses.replace(CONFIG, **{name: value})))
    assert (before != after) == (name in CHANGED)


def test_limits_are_not_named() -> None:
    """The trained length counts only with NTK scaling."""
    plain = dataclasses.replace(CONFIG, rotary_scaling_factor=None)
    longer = dataclasses.replace(plain, max_trained_positions=4096)
    assert architecture(plain) == architecture(longer) != architecture(CONFIG)
    whole = dataclasses.replace(CONFIG, rotary_scaling_factor=2, rope_theta=10000)
    assert json.dumps(architecture(whole)) == json.dumps(architecture(CONFIG))


def test_dtype_and_backend(folder: Path) -> None:
    kinds: list[dict[str, Any]] = [{"backend": "auto"}, {"backend": "reference"}]
    kinds += [{"dtype": torch.bfloat16}, {"dtype": torch.float16}]
    kinds += [{"backend": "int8"}] if why_not() is None else []
    seen = [of(Embedder(folder, **kind)) for kind in kinds]
    assert len(set(seen)) == len(kinds)
    assert of(Embedder(folder, backend="torch")) == seen[0]


def test_the_dtype_that_is_computed_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for found in (True, False):
        monkeypatch.setattr("nomicbert_kernels.dtypes.has_bf16_instructions", lambda f=found: f)
        seen.add(of(Embedder(folder, dtype=torch.bfloat16, backend="torch")))
    assert len(seen) == 2


def test_parameters_as_loaded(folder: Path, tmp_path: Path) -> None:
    """float32 read from a bfloat16 file has the bytes of the float32 that it was saved as."""
    Embedder(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "narrow")
    wide = Embedder(tmp_path / "narrow", dtype=torch.float32)
    wide.save_pretrained(tmp_path / "wide")
    assert of(wide) == of(Embedder(tmp_path / "wide")) != of(Embedder(folder))


def named(
    embedder: Embedder, *steps: Step, normalize: bool = False, **settings: Any
) -> Fingerprint:
    pooling = Pooling(64, steps=steps, normalize=normalize, **settings).eval()
    model = EmbeddingModel(embedder.model, pooling)
    return Fingerprint.of(model, embedder.tokenizer)


def test_steps_and_modes(folder: Path) -> None:
    embedder = Embedder(folder)
    dense = [Dense(64, 64), Dense(64, 64, activation="ReLU"), Dense(64, 64, use_residual=True)]
    for layer in dense[1:]:
        layer.load_state_dict(dense[0].state_dict())
    norm = LayerNorm(64)
    kinds = [named(embedder), *(named(embedder, layer) for layer in dense)]
    kinds += [
        named(embedder, norm),
        named(embedder, norm, dense[0]),
        named(embedder, dense[0], norm),
    ]
    kinds += [named(embedder, Normalize(), dense[0]), named(embedder, normalize=True)]
    for modes in (("cls",), ("mean", "cls"), ("cls", "mean"), ("mean", "mean")):
        kinds.append(named(embedder, modes=modes))
    kinds.append(named(embedder, include_prompt=False))
    seen = [kind.of_call(Finish(), "") for kind in kinds]
    assert len(set(seen)) == len(kinds)
    norm.norm.eps = 1e-6
    assert named(embedder, norm).of_call(Finish(), "") not in seen
    # dropout computes nothing
    assert named(embedder, Dropout(0.2)).of_call(Finish(), "") == seen[0]


# calls whose vectors are the same but for rounding
PLAIN = {
    "all": [Finish(), Finish(truncate_dim=64), Finish(unnormalized=True)],
    "unit": [Finish(normalize=True), Finish(truncate_dim=64, normalize=True)],
    "32": [Finish(truncate_dim=32), Finish(truncate_dim=32, unnormalized=True)],
    "16": [Finish(truncate_dim=16)],
    "32, unit": [Finish(truncate_dim=32, normalize=True)],
    "short": [Finish(matryoshka_dim=32), Finish(matryoshka_dim=32, normalize=True)],
    "short, full": [Finish(matryoshka_dim=64)],
    "short, unnormalized": [Finish(matryoshka_dim=32, unnormalized=True)],
}
UNIT = {
    "unit": [Finish(), Finish(normalize=True), Finish(truncate_dim=64), Finish(matryoshka_dim=64)],
    "32": [Finish(truncate_dim=32)],
    "32, unit": [Finish(truncate_dim=32, normalize=True), Finish(matryoshka_dim=32)],
    "any": [Finish(unnormalized=True)],
    "any, 32": [
        Finish(truncate_dim=32, unnormalized=True),
        Finish(matryoshka_dim=32, unnormalized=True),
    ],
}


@pytest.mark.parametrize("unit", [False, True])
def test_steps_of_a_call(unit: bool, folder: Path) -> None:
    """Calls of one row above have one fingerprint, and so vectors that agree; rows differ."""
    embedder = Embedder(folder)
    embedder.embedding_model.pooling = Pooling(
        64, normalize=unit, matryoshka_layer_norm=not unit
    ).eval()
    one = Fingerprint.of(embedder.embedding_model, embedder.tokenizer)
    texts = [[5, 9, 7], [8, 6, 11, 30]]
    spaces, vectors = [], []
    for calls in (UNIT if unit else PLAIN).values():
        (found,) = {one.of_call(finish, "") for finish in calls}
        with torch.inference_mode():
            rows = [embedder.embedding_model.encode_ids(texts, finish) for finish in calls]
        for row in rows:
            torch.testing.assert_close(row, rows[0], rtol=1e-6, atol=1e-6)
        for other in vectors:
            assert other.shape != rows[0].shape or (other - rows[0]).abs().max() > 1e-3
        spaces.append(found)
        vectors.append(rows[0])
    assert len(set(spaces)) == len(spaces)


def test_prompts_have_a_part_of_their_own(folder: Path) -> None:
    one = Fingerprint.of(Embedder(folder).embedding_model, Embedder(folder).tokenizer)
    prompts = ("", "query: ", "query:", "passage: ", "查询：")
    parts = [one.of_call(Finish(), prompt).partition(".") for prompt in prompts]
    assert len({space for space, _, _ in parts}) == 1
    assert len({prompt for _, _, prompt in parts}) == len(prompts)
    wide, short = (one.of_call(finish, "a") for finish in (Finish(), Finish(truncate_dim=8)))
    assert not matches(wide.partition(".")[0], short)
    assert matches(wide.partition(".")[0], one.of_call(Finish(), "b"))


def test_the_version_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(Embedder(folder))
    monkeypatch.setattr(fingerprint, "VERSION", fingerprint.VERSION + 1)
    assert of(Embedder(folder)) != before


def test_a_call_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Fingerprint.of(Embedder(folder).embedding_model, Embedder(folder).tokenizer)
    first = one.of_call(Finish(truncate_dim=7), "a prompt")
    monkeypatch.setattr(fingerprint, "_hash", None)
    assert one.of_call(Finish(truncate_dim=7), "a prompt") == first
    assert fingerprint._of_call.cache_info().maxsize == fingerprint.KEPT


def test_values_are_bytes() -> None:
    """Whatever the shape and dtype: these are named next to them."""
    parameter = torch.arange(6.0)
    before = fingerprint._values(parameter)
    assert fingerprint._values(parameter.view(2, 3)) == before
    assert fingerprint._values(parameter.view(torch.int32)) == before
    assert fingerprint._values(torch.tensor(1.5)) == fingerprint._values(torch.tensor([1.5]))
    assert fingerprint._values(torch.empty(0, 3)) == fingerprint._values(torch.empty(0))


@pytest.mark.parametrize("kind", ["wrapped", "hook", "pooling", "forward", "parametrised"])
def test_models_that_parameters_do_not_tell(kind: str, folder: Path) -> None:
    embedder = Embedder(folder)
    layer = embedder.model.layers[0].attention
    if kind == "wrapped":
        layer.out = nn.Sequential(layer.out)  # type: ignore[union-attr]
    if kind == "hook":
        layer.register_forward_hook(lambda *_: None)
    if kind == "pooling":
        embedder.pooling.register_forward_hook(lambda *_: None)
    if kind == "forward":
        layer.out.forward = lambda x: x  # type: ignore[union-attr]
    if kind == "parametrised":
        nn.utils.parametrizations.orthogonal(layer.out)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="was replaced, wrapped or hooked"):
        of(embedder)


def test_embedder(folder: Path) -> None:
    embedder = Embedder(folder)
    embedder.prompts = {"query": "find: ", "doc": ""}
    found = embedder.fingerprint()
    assert found == of(embedder)
    assert embedder.fingerprint(prompt_name="query") == of(embedder, prompt="find: ")
    assert embedder.fingerprint(prompt="x") == of(embedder, prompt="x")
    assert embedder.fingerprint(matryoshka_dim=8) == of(embedder, Finish(matryoshka_dim=8))
    assert embedder.fingerprint(normalize_embeddings=True) == of(embedder, Finish(normalize=True))
    embedder.truncate_dim = 16
    assert embedder.fingerprint() == of(embedder, Finish(truncate_dim=16))
    assert embedder.fingerprint(matryoshka_dim=8) == of(embedder, Finish(matryoshka_dim=8))
    embedder.truncate_dim = None
    embedder.default_prompt_name = "query"
    assert embedder.fingerprint() == of(embedder, prompt="find: ")
    with pytest.raises(ValueError, match="truncate_dim must be 1 to 112, not 113"):
        embedder.fingerprint(truncate_dim=113)
    with pytest.raises(ValueError, match="unknown prompt_name 'passage'"):
        embedder.fingerprint(prompt_name="passage")


def test_an_embedder_that_is_trained(folder: Path) -> None:
    """Also through `data`, which torch does not count as a change."""
    embedder = Embedder(folder)
    seen = [embedder.fingerprint()]
    weight = embedder.model.layers[0].attention.out.weight  # type: ignore[union-attr]
    with torch.no_grad():
        weight.mul_(1.5)  # type: ignore[operator]
    seen.append(embedder.fingerprint())
    weight.data[3, 3] += 1  # type: ignore[operator]
    seen.append(embedder.fingerprint())
    embedder.model.use("reference")
    seen.append(embedder.fingerprint())
    assert len(set(seen)) == 4


def test_it_is_the_same_tomorrow() -> None:
    """Raise VERSION, and enter the new value, if and only if vectors have changed."""
    model = EmbeddingModel(NomicBert(CONFIG, backend="torch"), Pooling(32, steps=[Dense(32, 8)]))
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.arange(parameter.numel()).remainder(251).div(256)
            parameter.copy_(values.view(parameter.shape))
    parameters = fingerprint._hash(dict(fingerprint._parameters(model)))
    settings = fingerprint._hash(fingerprint._architecture(CONFIG))
    call = Fingerprint("0" * 64, 64, True, True).of_call(Finish(truncate_dim=7), "query: ")
    assert parameters[:16] == "2ec6220007dd522c"
    assert settings[:16] == "3cbba3d64bb5d639"
    assert call == "ab97d04a4851d59456f474e849c9ecf3.b4675a3c"
