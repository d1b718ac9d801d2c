"""`nomicbert info` against facts that the tests read from the files."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nomicbert import Embedder
from nomicbert.describe import describe
from tests.cli.info_cases import CASES, Facts, case, info  # noqa: F401
from tests.support.checkpoints import build_checkpoint, edit_config, read_config, tensor_shapes
from tests.support.command_line import ROOT, environment, one_line, run_cli, run_python
from tests.support.cpus import pretend
from tests.support.fake_hub import FakeHub, Repository

Header = dict[str, tuple[str, list[int]]]

BIT_NAMES = {"F32": "float32", "F16": "float16", "I64": "int64"}
# Tensors that an embedding does not need.
NOT_NEEDED = ("pooler.", "cls.", "embeddings.position_ids")


def read_header(path: Path) -> Header:
    """The header of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}


def read_headers(folder: Path) -> Header:
    """Names, dtypes and shapes of all tensors of a folder, in any file format."""
    found: Header = {}
    for path in folder.glob("*.safetensors"):
        found |= read_header(path)
    for path in folder.glob("*.bin"):
        for name, tensor in torch.load(path, weights_only=True).items():
            kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
            found[name] = (kind, list(tensor.shape))
    return found


POSITIONS = {
    "v1.5": {"theta": 1000, "trained_length": 2048, "scaling_factor": None, "rotary_dim": 16},
    "v1": {"theta": 1000, "trained_length": 2048, "scaling_factor": 2},
    "v2-moe": {"theta": 10000, "trained_length": 2048, "kind": "rotary", "learned": None},
    "conan": {"kind": "learned", "learned": 512, "theta": None, "trained_length": None},
}


def test_fields_of_each_checkpoint(case: tuple[str, Path]) -> None:
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
def test_fields_agree_with_embedder(name: str, tmp_path: Path) -> None:
    variant, options, _ = CASES[name]
    folder = build_checkpoint(tmp_path / name, variant, **options)
    facts, embedder = info(folder, "--dtype", "bfloat16"), Embedder(folder, dtype=torch.bfloat16)
    parameters = [*embedder.model.parameters(), *embedder.pooling.parameters()]
    assert facts["parameters"] == sum(p.numel() for p in parameters)
    assert facts["embedding_dimension"] == embedder.get_sentence_embedding_dimension()
    assert facts["max_seq_length"] == embedder.max_seq_length
    assert facts["similarity"] == embedder.similarity_fn_name
    # an embedder may have empty ones besides, as in sentence-transformers
    assert facts["prompts"].items() <= embedder.prompts.items()
    assert not any(embedder.prompts[added] for added in embedder.prompts.keys() - facts["prompts"])
    assert facts["pooling"] == embedder.pooling.mode
    assert facts["normalize"] == embedder.pooling.normalize
    assert facts["include_prompt"] is embedder.pooling.include_prompt
    steps = [*map(str, embedder.pooling.steps), *["L2"] * facts["normalize"]]
    assert facts["steps"] == steps
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
        "it runs on every torch device",
    )
    plain = info(
        folder, "--rotary-scaling-factor", "0", "--backend", "reference", "--device", "cpu"
    )
    assert plain["positions"]["scaling_factor"] is None
    assert (plain["backend"]["name"], plain["backend"]["reason"]) == ("reference", "requested")
    assert info(folder, "--rotary-scaling-factor", "4")["positions"]["scaling_factor"] == 4
    half = build_checkpoint(tmp_path / "gte", "gte", num_hidden_layers=1)
    edit_config(half, torch_dtype="float16")
    assert info(half, "--dtype", "auto")["backend"]["dtype"] == "float16"


def notes(folder: Path, *options: str) -> str:
    return "\n".join(info(folder, *options)["notes"])


def test_notes(tmp_path: Path) -> None:
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
    assert notes(gte) == "other weight files in the folder are ignored: pytorch_model.bin"
    (gte / "modules.json").unlink()
    shutil.rmtree(gte / "1_Pooling")
    assert "no modules.json: texts are pooled by mean" in notes(gte)


def test_the_maximal_length_and_its_source(tmp_path: Path) -> None:
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


def test_a_non_commercial_licence_is_noted(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    facts = info(folder)
    assert (facts["license"], facts["non_commercial"]) == ("cc-by-nc-4.0", True)
    assert facts["notes"][0] == "the licence cc-by-nc-4.0 forbids commercial use of the weights"


def test_log_levels_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    logger = logging.getLogger("nomicbert_kernels.backend")
    before = (logger.level, logger.propagate, [*logger.handlers])
    assert describe(folder).target.reason
    assert (logger.level, logger.propagate, [*logger.handlers]) == before
    assert not caplog.records
    logger.setLevel(logging.INFO)
    try:
        assert describe(folder, backend="reference").target.reason == "requested"
    finally:
        logger.setLevel(before[0])
    assert len(caplog.records) == 1  # the message of loading, not repeated


def test_nan_weights_are_not_read(tmp_path: Path) -> None:
    """Only loading reads the weights, and warns about them."""
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    for path in (folder / "model.safetensors", folder / "2_Dense/model.safetensors"):
        save_file({n: torch.full_like(t, math.nan) for n, t in load_file(path).items()}, path)
    assert info(folder)["embedding_dimension"] == 112


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A sparse safetensors file of zeros."""
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
describe(tiny)  # imports everything that the measured call needs
before = peak()
print(describe(full).files.parameters, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("variant", "published"), [("nomic-v1.5", 136_731_648), ("nomic-v2-moe", 475_292_928)]
)
def test_full_size_weights_are_counted_but_not_read(
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


def _files(place: Path) -> dict[str, bytes]:
    found = (path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def test_a_repository_of_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    repository = hub.repositories["acme/tiny"] = Repository()
    for revision, layers in (("main", 1), ("v2", 2)):
        place = build_checkpoint(tmp_path / revision, "minilm", num_hidden_layers=layers)
        card = {"README.md": b"---\nlicense: mit\n---\n"}
        repository.commit(revision, _files(place) | card)
    code, _, err = run_cli("info", "acme/tiny", "--local-files-only")
    assert code == 2
    assert "'acme/tiny' at revision 'main' is not in the cache" in one_line(err)
    settings = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "cache"))
    line = ("-m", "nomicbert", "--quiet", "info", "acme/tiny", "--json")
    done = run_python(*line, "--revision", "v2", env=settings)
    assert (done.returncode, done.stderr) == (0, "")  # no bars of downloads
    facts = json.loads(done.stdout)
    assert (facts["model"], facts["num_hidden_layers"], facts["license"]) == ("acme/tiny", 2, "mit")
    assert facts["folder"] is None
    assert not list((tmp_path / "cache").rglob("*.json"))  # nothing that looks like a checkpoint
    fetched = run_python(
        "-c",
        "from nomicbert.loading import hub; print(hub.resolve('acme/tiny', revision='v2'))",
        env=settings,
    ).stdout.strip()
    again = json.loads(run_python(*line, "--revision", "v2", env=settings).stdout)
    assert again == facts | {"folder": fetched}
    assert Path(fetched).is_relative_to(tmp_path / "cache")


# Prints what is described, or the error, of the repositories that are named.
DESCRIBING = """
import sys
from nomicbert.cli.info import as_document
from nomicbert.describe import describe
from nomicbert.loading import hub_preview
hub_preview.FIRST = 64
for name in sys.argv[1:]:
    try:
        found = as_document("m", describe(name))
        print(found["folder"], found["parameters"], found["files"]["bytes"])
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_only_headers_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    """Whole or sharded, next to a Dense layer; and from servers that send whole files only."""
    for name, variant in (("whole", "conan-v1"), ("sharded", "e5"), ("bin", "e5")):
        form = "safetensors" if name == "whole" else name
        place = build_checkpoint(tmp_path / name, variant, num_hidden_layers=1, weights=form)
        hub.repositories[f"acme/{name}"] = Repository()
        hub.repositories[f"acme/{name}"].commit("main", _files(place))
    broken = _files(tmp_path / "whole") | {"model.safetensors": b"\xff" * 4096}
    hub.repositories["acme/broken"] = Repository()
    hub.repositories["acme/broken"].commit("main", broken)
    hub.repositories["acme/unsized"] = hub.repositories["acme/whole"]
    hub.unsized = {"acme/unsized"}
    settings = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "cache"))
    lines = run_python("-c", DESCRIBING, "acme/whole", "acme/sharded", env=settings).stdout
    sent, hub.ranges = hub.sent, False
    names = [f"acme/{name}" for name in ("whole", "bin", "unsized", "broken", "missing")]
    done = run_python("-c", DESCRIBING, *names, env=settings)
    again, by_bin, unsized, damaged, missing = done.stdout.splitlines()
    wanted = [describe(tmp_path / name).files for name in ("whole", "sharded")]
    assert lines.splitlines() == [f"None {each.parameters} {each.bytes}" for each in wanted]
    files = [path for name in ("whole", "sharded") for path in (tmp_path / name).rglob("*")]
    sizes = {path: path.stat().st_size for path in files if path.is_file()}
    weights = sum(size for path, size in sizes.items() if re.match(r"model.*\.s", path.name))
    assert again == lines.splitlines()[0]
    assert sent < sum(sizes.values()) - 0.8 * weights
    for fetched in (by_bin, unsized):
        assert fetched.startswith(str(tmp_path / "cache"))
    assert "is not a valid safetensors file" in damaged
    assert "acme/broken: no header of model.safetensors (its first bytes are none)" in done.stderr
    assert missing.startswith("HubError No readable repository 'acme/missing'")


def paths(document: Facts, before: str = "") -> Iterator[str]:
    """All fields of a document, with dots for nested objects."""
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
