"""`nomicbert info` against facts that are read here from the files themselves."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nomicbert import Embedder
from nomicbert.describe import describe
from nomicbert.errors import NomicBertError
from nomicbert_kernels import linear_int8
from tests.support.checkpoints import build_checkpoint, edit_config, read_config, tensor_shapes
from tests.support.command_line import ROOT, environment, one_line, run_cli, run_python
from tests.support.cpus import pretend
from tests.support.fake_hub import FakeHub, Repository

Facts = dict[str, Any]
Header = dict[str, tuple[str, list[int]]]

BIT_NAMES = {"F32": "float32", "F16": "float16", "I64": "int64"}
# What an embedding needs nothing of.
NOT_NEEDED = ("pooler.", "cls.", "embeddings.position_ids")


def info(folder: Path | str, *options: str) -> Facts:
    """The JSON document of a checkpoint."""
    code, out, err = run_cli("info", str(folder), "--json", *options)
    assert (code, err) == (0, "")
    facts: Facts = json.loads(out)
    return facts


def read_header(path: Path) -> Header:
    """The header of a safetensors file, as the format lays it down."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}


def read_headers(folder: Path) -> Header:
    """Names, dtypes and shapes of all tensors of a folder, in whatever files they are."""
    found: Header = {}
    for path in folder.glob("*.safetensors"):
        found |= read_header(path)
    for path in folder.glob("*.bin"):
        for name, tensor in torch.load(path, weights_only=True).items():
            kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
            found[name] = (kind, list(tensor.shape))
    return found


MEAN_NOMIC = {
    "model_type": "nomic_bert",
    "pooling": "mean",
    "dense": [],
    "prompt_required": True,
    "default_prompt_name": None,
    "query_prompt_name": "search_query",
    "document_prompt_name": "search_document",
    "max_seq_length": 8192,
    "max_seq_length_source": "sentence_bert_config.json",
    "mlp": {"kind": "swiglu", "experts": 0, "experts_per_token": 0},
    "similarity": "cosine",
}
V15 = MEAN_NOMIC | {"normalize": False, "matryoshka": "layer_norm -> slice -> L2"}
MEAN_BERT = {
    "model_type": "bert",
    "pooling": "mean",
    "dense": [],
    "normalize": True,
    "matryoshka": "slice -> L2",
    "prompts": {},
    "prompt_required": False,
    "query_prompt_name": None,
    "max_seq_length": 512,
    "max_seq_length_source": "sentence_bert_config.json",
    "mlp": {"kind": "gelu", "experts": 0, "experts_per_token": 0},
    "config_keys": "native",
}
RETRIEVAL = "Represent this sentence for searching relevant passages: "
# name -> variant, how it is built, what must be said; files' fields stand beside the others here
CASES: dict[str, tuple[str, Facts, Facts]] = {
    "v1.5": ("nomic-v1.5", {}, V15 | {"config_keys": "both"}),
    "v1.5-legacy": ("nomic-v1.5", {"dialect": "legacy"}, V15 | {"config_keys": "legacy"}),
    "v1.5-native": (
        "nomic-v1.5",
        {"dialect": "native"},
        V15 | {"config_keys": "native"},
    ),
    "v1": ("nomic-v1", {}, MEAN_NOMIC | {"normalize": True, "matryoshka": "slice -> L2"}),
    "v2-moe": (
        "nomic-v2-moe",
        {"weights": "sharded"},
        {
            "mlp": {"kind": "gelu", "experts": 8, "experts_per_token": 2},
            "prompts": {"query": "search_query: ", "passage": "search_document: "},
            "prompt_required": False,
            "query_prompt_name": "query",
            "document_prompt_name": "passage",
            "max_seq_length": 512,
            "config_keys": "legacy",
            "format": "safetensors",
            "shards": 2,
            "matryoshka": "slice -> L2",
        },
    ),
    "conan": (
        "conan-v1",
        {},
        MEAN_BERT
        | {
            "dense": [{"in_features": 64, "out_features": 112, "activation": "Identity"}],
            "embedding_dimension": 112,
            "normalize": False,
            "unread": ["pooler.dense.bias", "pooler.dense.weight"],
        },
    ),
    "bge": (
        "bge-en",
        {},
        MEAN_BERT
        | {
            "pooling": "cls",
            "prompts": {"query": RETRIEVAL},
            "query_prompt_name": "query",
            "document_prompt_name": None,
        },
    ),
    "gte": ("gte", {}, MEAN_BERT | {"dtypes": ["float16"], "embedding_dimension": 64}),
    "minilm-bin": (
        "minilm",
        {"weights": "bin"},
        MEAN_BERT
        | {
            "max_seq_length": 256,
            "format": "bin",
            "shards": 1,
            "unread": ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"],
        },
    ),
    "bare": (
        "bert-base-uncased",
        {},
        MEAN_BERT
        | {
            "normalize": False,
            "tensor_prefix": "bert.",
            "max_seq_length_source": "tokenizer_config.json",
        },
    ),
}
POSITIONS = {
    "v1.5": {"theta": 1000, "trained_length": 2048, "scaling_factor": None, "rotary_dim": 16},
    "v1": {"theta": 1000, "trained_length": 2048, "scaling_factor": 2},
    "v2-moe": {"theta": 10000, "trained_length": 2048, "kind": "rotary", "learned": None},
    "conan": {"kind": "learned", "learned": 512, "theta": None, "trained_length": None},
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    variant, options, _ = CASES[request.param]
    return request.param, build_checkpoint(tmp_path / request.param, variant, **options)


def test_what_each_checkpoint_is(case: tuple[str, Path]) -> None:
    name, folder = case
    facts = info(folder)
    said = facts | facts["files"]
    expected = CASES[name][2]
    assert {key: said[key] for key in expected} == expected
    positions = POSITIONS.get(name, {})
    assert {key: facts["positions"][key] for key in positions} == positions


def test_sizes_are_those_of_the_files(case: tuple[str, Path]) -> None:
    _, folder = case
    facts, config, tensors = info(folder), read_config(folder), read_headers(folder)
    for ours, theirs in {
        "num_hidden_layers": "n_layer",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
    }.items():
        assert facts[ours] == config.get(ours, config.get(theirs))
    assert facts["head_dim"] * facts["num_attention_heads"] == facts["hidden_size"]
    assert facts["vocab_size"] == config["vocab_size"]
    prefix = facts["files"]["tensor_prefix"]
    needed = {
        name: entry
        for name, entry in tensors.items()
        if not name.removeprefix(prefix).startswith(NOT_NEEDED)
    }
    dense = read_headers(folder / "2_Dense") if facts["dense"] else {}
    read = [*needed.values(), *dense.values()]
    assert facts["parameters"] == sum(math.prod(shape) for _, shape in read)
    assert facts["files"]["dtypes"] == sorted({BIT_NAMES[dtype] for dtype, _ in read})
    assert facts["files"]["unread"] == sorted(tensors.keys() - needed)
    weights = [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]
    assert facts["files"]["bytes"] == sum(path.stat().st_size for path in weights)
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    assert facts["tokenizer_size"] == len(vocabulary)


@pytest.mark.parametrize("name", ["v1.5", "v1", "v2-moe", "conan", "bge", "minilm-bin"])
def test_it_is_what_embedder_does(name: str, tmp_path: Path) -> None:
    variant, options, _ = CASES[name]
    folder = build_checkpoint(tmp_path / name, variant, **options)
    facts, embedder = info(folder, "--dtype", "bfloat16"), Embedder(folder, dtype=torch.bfloat16)
    parameters = [*embedder.model.parameters(), *embedder.pooling.parameters()]
    assert facts["parameters"] == sum(p.numel() for p in parameters)
    assert facts["embedding_dimension"] == embedder.get_sentence_embedding_dimension()
    assert facts["max_seq_length"] == embedder.max_seq_length
    assert facts["similarity"] == embedder.similarity_fn_name
    assert facts["prompts"] == embedder.prompts
    assert facts["pooling"] == embedder.pooling.mode
    assert facts["normalize"] == embedder.pooling.normalize
    assert ("layer_norm" in facts["matryoshka"]) == embedder.pooling.matryoshka_layer_norm
    assert facts["backend"]["name"] == embedder.model.ops.name
    assert facts["backend"]["dtype"] == str(embedder.model.dtype).removeprefix("torch.")
    computed = str(embedder.model.compute_dtype).removeprefix("torch.")
    assert facts["backend"]["computed_in"] == computed


@pytest.mark.parametrize("found", [True, False])
def test_where_bfloat16_is_computed_in_float32(
    found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, found)
    folder = build_checkpoint(tmp_path / "v1", "nomic-v1", num_hidden_layers=1)
    options = ("--dtype", "bfloat16", "--device", "cpu")
    assert info(folder, *options)["backend"]["computed_in"] == ("bfloat16" if found else "float32")
    code, out, _ = run_cli("info", str(folder), *options)
    assert code == 0
    computed = "" if found else ", computed in float32"
    assert f"torch on cpu in bfloat16{computed}: " in " ".join(out.split())


def test_options_are_those_of_loading(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "v1", "nomic-v1", num_hidden_layers=1)
    scaled = info(folder)
    assert scaled["backend"] == {
        "name": "torch",
        "device": "cpu" if not torch.cuda.is_available() else "cuda",
        "dtype": "float32",
        "computed_in": "float32",
        "reason": scaled["backend"]["reason"],
    }
    assert scaled["backend"]["reason"] in (
        "oneDNN packs its weights",
        "it runs wherever torch does",
    )
    plain = info(
        folder, "--rotary-scaling-factor", "0", "--backend", "reference", "--device", "cpu"
    )
    assert plain["positions"]["scaling_factor"] is None
    assert (plain["backend"]["name"], plain["backend"]["reason"]) == ("reference", "asked for")
    assert info(folder, "--rotary-scaling-factor", "4")["positions"]["scaling_factor"] == 4
    half = build_checkpoint(tmp_path / "gte", "gte", num_hidden_layers=1)
    edit_config(half, torch_dtype="float16")
    assert info(half, "--dtype", "auto")["backend"]["dtype"] == "float16"


def notes(folder: Path, *options: str) -> str:
    return "\n".join(info(folder, *options)["notes"])


def test_notes_on_what_is_easily_overlooked(tmp_path: Path) -> None:
    v15 = build_checkpoint(tmp_path / "v1.5", "nomic-v1.5", num_hidden_layers=1)
    assert re.search("more than 2048 tokens .* rotary_scaling_factor to 2 ", notes(v15))
    assert notes(v15, "--rotary-scaling-factor", "2") == ""
    v1 = build_checkpoint(tmp_path / "v1", "nomic-v1", num_hidden_layers=1)
    assert "max_position_embeddings of 8192" in notes(v1)
    assert "the trained length is 2048" in notes(v1)
    gte = build_checkpoint(tmp_path / "gte", "gte", num_hidden_layers=1)
    assert notes(gte) == "config.json says float32, the weights are float16"
    edit_config(gte, torch_dtype="float16")
    assert notes(gte) == ""
    (gte / "pytorch_model.bin").write_bytes(b"")
    assert notes(gte) == "pytorch_model.bin lies there too and is not read"
    (gte / "modules.json").unlink()
    assert "no modules.json: texts are pooled by mean" in notes(gte)


def test_the_length_and_where_it_comes_from(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "bge", "bge-en", num_hidden_layers=1)

    def limit() -> tuple[int, str]:
        facts = info(folder)
        assert facts["max_seq_length"] == Embedder(folder).max_seq_length
        return facts["max_seq_length"], facts["max_seq_length_source"]

    settings = folder / "sentence_bert_config.json"
    settings.write_text('{"max_seq_length": 300}')
    assert limit() == (300, "sentence_bert_config.json")
    settings.write_text('{"max_seq_length": 4096}')
    assert limit() == (512, "learned positions")
    settings.write_text('{"do_lower_case": false}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 400}')
    assert limit() == (400, "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert limit() == (512, "config.json")


def test_a_licence_that_forbids_commercial_use_is_said(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    facts = info(folder)
    assert (facts["license"], facts["non_commercial"]) == ("cc-by-nc-4.0", True)
    assert facts["notes"][0] == "the licence cc-by-nc-4.0 forbids commercial use of the weights"


def test_lines_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_checkpoint(tmp_path / "conan", "conan-v1", num_hidden_layers=2)
    (tmp_path / "conan" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli("info", "conan", "--backend", "reference", "--device", "cpu")
    assert (code, err) == (0, "")
    size = sum(path.stat().st_size for path in Path("conan").rglob("*.safetensors"))
    assert (
        out
        == f"""\
checkpoint   conan
licence      cc-by-nc-4.0
model        bert, {info("conan")["parameters"]:,} parameters
sizes        2 layers, hidden 64, 4 heads of 16, MLP 96, vocabulary 544
weights      safetensors, float32, {size / 1e6:.1f} MB
layout       native config keys, no prefix
unread       pooler.dense.bias, pooler.dense.weight
positions    512 learned
MLP          GELU
pooling      mean, Dense 64 -> 112 (Identity)
embedding    112 dimensions, similarity cosine
matryoshka   slice -> L2
prompts      none
max length   512 tokens (sentence_bert_config.json)
backend      reference on cpu in float32: asked for
notes        the licence cc-by-nc-4.0 forbids commercial use of the weights
"""
    )


LINES = {
    "v1.5": ['prompts      search_query = "search_query: " (encode_query)'],
    "v1": [
        "positions    rotary, theta 1000, trained on 2048 tokens, dynamic NTK factor 2",
        "             one of them is needed before every text",
    ],
    "v2-moe": ["MLP          GELU; 8 experts in every second layer, 2 a token"],
    "bge": ["pooling      cls, L2"],
    "bare": [
        "layout       native config keys, 'bert.' before tensor names",
        "             cls.predictions.bias, cls.predictions.decoder.weight and 6 more",
    ],
}


def test_lines_for_people_are_short(
    case: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = case
    monkeypatch.chdir(folder.parent)
    lines = run_cli("info", name)[1].splitlines()
    assert max(map(len, lines)) <= 80
    labels = [line[:13].strip() for line in lines if line[0] != " "]
    assert labels[0] == "checkpoint"
    assert len(set(labels)) == len(labels) >= 14
    assert set(LINES.get(name, ())) <= set(lines)
    assert "             none" not in lines  # the word for no prompts at all, behind the label


@pytest.mark.skipif(linear_int8.why_not() is not None, reason="no int8 products on this CPU")
def test_int8_is_said(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    options = ("--backend", "int8", "--device", "cpu")
    assert info(folder, *options)["backend"] == {
        "name": "int8",
        "device": "cpu",
        "dtype": "float32",
        "computed_in": "float32",
        "reason": "asked for",
    }
    code, out, err = run_cli("info", str(folder), *options)
    assert (code, err) == (0, "")
    assert "backend      int8 on cpu in float32: asked for\n" in out


def test_what_only_lines_say_elsewhere(tmp_path: Path) -> None:
    """Wording of what is rare: shards, partial rotation, a default prompt."""
    folder = build_checkpoint(
        tmp_path, "nomic-v1.5", weights="sharded", num_hidden_layers=1, rotary_emb_fraction=0.5
    )
    settings = {"prompts": {"topic": "about:\n"}, "default_prompt_name": "topic"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    out = run_cli("info", str(folder))[1]
    assert "safetensors in 2 files, float32" in out
    assert "rotary on 8 dimensions, theta 1000" in out
    assert 'topic = "about:\\n" (default, encode_query, encode_document)\n' in out


def test_log_levels_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    logger = logging.getLogger("nomicbert_kernels.backend")
    before = (logger.level, logger.propagate, [*logger.handlers])
    assert describe(folder).target.reason
    assert (logger.level, logger.propagate, [*logger.handlers]) == before
    assert not caplog.records
    logger.setLevel(logging.INFO)
    try:
        assert describe(folder, backend="reference").target.reason == "asked for"
    finally:
        logger.setLevel(before[0])
    assert len(caplog.records) == 1  # as loading says it, and no second time


def break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_type(folder: Path) -> None:
    edit_config(folder, model_type="t5")


def lose_a_tensor(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=2)


def lose_the_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()


def tear_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def widen_the_dense(folder: Path) -> None:
    path = folder / "2_Dense/model.safetensors"
    save_file({"linear.bias": torch.zeros(3)}, path)


BROKEN = {
    break_json: "config.json is not JSON",
    break_type: "model_type = 't5' is not supported",
    lose_a_tensor: "encoder.layer.1.attention.self.query.weight",
    lose_the_tokenizer: "has no tokenizer",
    tear_the_weights: "not a sound safetensors file",
    widen_the_dense: "2_Dense",
    shutil.rmtree: "does not exist",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_one_line(damage: Any, tmp_path: Path) -> None:
    """The same error that loading gives."""
    folder = build_checkpoint(tmp_path / "conan", "conan-v1", num_hidden_layers=1)
    damage(folder)
    code, out, err = run_cli("info", str(folder))
    assert (code, out) == (2, "")
    assert BROKEN[damage] in one_line(err)
    with pytest.raises(NomicBertError) as raised:
        Embedder(folder)
    assert err == f"nomicbert: {' '.join(str(raised.value).split())}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "triton", "--device", "cpu"], "it needs a CUDA device, not cpu"),
        (["--backend", "int8", "--dtype", "bfloat16"], "its hidden states are float32"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--rotary-scaling-factor", "2"], "a bert checkpoint has no rotary_scaling_factor"),
    ],
)
def test_what_cannot_be_loaded_so(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pretend(monkeypatch, True)
    folder = build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    code, out, err = run_cli("info", str(folder), *options)
    assert (code, out) == (2, "")
    assert message in one_line(err)


def test_broken_numbers_are_not_seen(tmp_path: Path) -> None:
    """Loading warns about them, because it reads them."""
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    for path in (folder / "model.safetensors", folder / "2_Dense/model.safetensors"):
        save_file({n: torch.full_like(t, math.nan) for n, t in load_file(path).items()}, path)
    assert info(folder)["embedding_dimension"] == 112


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros that takes no room on disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


PEAK = """
import sys
from nomicbert.describe import describe
from nomicbert.errors import NomicBertError

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024

tiny, full = sys.argv[1:]
describe(tiny)  # what is imported on the way
before = peak()
print(describe(full).files.parameters, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("variant", "published"), [("nomic-v1.5", 136_731_648), ("nomic-v2-moe", 475_292_928)]
)
def test_the_real_size_is_counted_and_not_read(
    variant: str, published: int, tmp_path: Path
) -> None:
    tiny = build_checkpoint(tmp_path / "tiny", variant)
    full = tmp_path / "full"
    shutil.copytree(tiny, full)
    shapes = tensor_shapes(variant, "full")
    sizes = build_checkpoint(tmp_path / "sizes", variant, num_hidden_layers=1)
    rows, width = shapes["embeddings.word_embeddings.weight"]
    real = {"n_embd": width, "n_layer": 12, "n_head": 12, "n_inner": 3072, "vocab_size": rows}
    native = {"hidden_size": width, "num_hidden_layers": 12, "num_attention_heads": 12}
    native |= {"intermediate_size": 3072}
    known = read_config(sizes)
    edit_config(full, **{key: value for key, value in (real | native).items() if key in known})
    edit_config(full / "1_Pooling", word_embedding_dimension=width)
    write_sparse(full / "model.safetensors", shapes)
    done = run_python("-c", PEAK, str(tiny), str(full))
    assert done.returncode == 0, done.stderr
    parameters, peak = map(int, done.stdout.split())
    assert parameters == published
    assert peak < 32 * 2**20  # of 547 and 1901 MB


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    server.start()
    yield server
    server.stop()


def test_a_repository_of_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    repository = hub.repositories["acme/tiny"] = Repository()
    for revision, layers in (("main", 1), ("v2", 2)):
        place = build_checkpoint(tmp_path / revision, "minilm", num_hidden_layers=layers)
        files = {
            path.relative_to(place).as_posix(): path.read_bytes()
            for path in place.rglob("*")
            if path.is_file()
        }
        repository.commit(revision, files | {"README.md": b"---\nlicense: mit\n---\n"})
    code, _, err = run_cli("info", "acme/tiny", "--local-files-only")
    assert code == 2
    assert "'acme/tiny' at revision 'main' is not in the cache" in one_line(err)
    settings = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "cache"))
    line = ("-m", "nomicbert", "info", "acme/tiny", "--json")
    done = run_python(*line, "--revision", "v2", env=settings)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["model"], facts["num_hidden_layers"], facts["license"]) == ("acme/tiny", 2, "mit")
    assert Path(facts["folder"]).is_relative_to(tmp_path / "cache")


def paths(document: Facts, before: str = "") -> Iterator[str]:
    """Every field of a document, those of inner objects behind a dot."""
    for key, value in document.items():
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and key != "prompts":
            yield from paths(inner, f"{before}{key}.")
        else:
            yield before + key


def test_every_field_is_documented(tmp_path: Path) -> None:
    facts = info(build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1))
    page = (ROOT / "docs/info.md").read_text("utf-8")
    documented = re.findall(r"^\| `([\w.]+)` \|", page, re.M)
    assert documented == list(paths(facts))


def test_describing_needs_no_command_line(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    found = describe(folder, dtype=torch.float16, device="cpu")
    assert found.dense == [(64, 112, "Identity")]
    assert {p.device.type for p in found.pooling.parameters()} == {"meta"}
    assert found.target.dtype == "float16"
