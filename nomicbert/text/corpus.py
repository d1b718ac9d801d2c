"""The demo's corpus: docstrings of Python's standard library, as short passages.

Where in the flow: `nomicbert demo` reads these passages and indexes them. The source files of the
running interpreter are parsed, never imported: no side effects, no network. Modules written in C
(math, itertools, ...) have no source file and do not occur.

Source: `sys.stdlib_module_names` and `sysconfig.get_path("stdlib")` define the library.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

# A passage takes whole paragraphs until it has ENOUGH_WORDS to state the purpose. More would dilute
# the vector, an average over tokens: later paragraphs are usage, lists of classes and history.
ENOUGH_WORDS = 12
MAX_WORDS = 80
MIN_WORDS = 3  # shorter docstrings ("See above.") answer nothing

# Of no interest to a reader: tests, the interpreter's own tools, tables of characters, jokes,
# modules removed in Python 3.12, and ntpath, which duplicates posixpath.
SKIPPED = frozenset(
    "antigravity distutils encodings ensurepip idle_test idlelib lib2to3 ntpath posixpath "
    "pydoc_data test tests this turtledemo".split()
)
# Source file -> public name: Python versions of C modules, and os.path.
PUBLIC_NAMES = {
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "posixpath": "os.path",
}

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Passage:
    """The qualified name of an object and the beginning of its docstring."""

    name: str
    summary: str

    @property
    def text(self) -> str:
        """The text to embed. It includes the name, which carries meaning too."""
        return f"{self.name}: {self.summary}"


def read_passages(limit: int | None = None, modules: Sequence[str] = ()) -> list[Passage]:
    """Collect passages from the standard library, in an order that is the same on every call.

    The order is round-robin (the first docstring of each module, then the second of each, ...), so
    a small limit covers the whole library and a large module cannot crowd out the others.

    Args:
        limit: maximum number of passages; None for all.
        modules: top-level modules to read, such as "argparse"; empty for all of them.
    Returns: passages with distinct names and distinct summaries.
    Raises: ValueError: a module has no source file in this interpreter's standard library, or no
        docstring was found.
    """
    root = Path(sysconfig.get_path("stdlib"))
    rounds = zip_longest(*(_read_file(*found) for found in _source_files(root, modules)))
    names: set[str] = set()
    summaries: set[str] = set()
    passages: list[Passage] = []
    for passage in (passage for each in rounds for passage in each if passage is not None):
        if len(passages) == limit:
            break
        if passage.name in names or passage.summary in summaries:
            continue
        names.add(passage.name)
        summaries.add(passage.summary)
        passages.append(passage)
    if not passages:
        raise ValueError(f"no docstrings to index in {', '.join(modules) or root}")
    return passages


def _source_files(root: Path, wanted: Sequence[str]) -> list[tuple[str, Path]]:
    """List (module name, source file) of the public modules, sorted by name."""
    found: dict[str, Path] = {}
    for top in sorted(sys.stdlib_module_names):
        if (root / top / "__init__.py").is_file():
            found.update(_package_files(root, root / top))
        elif (file := root / f"{top}.py").is_file():
            found[top] = file
    # They replace the stubs under the public name, which only import the C module.
    found.update({name: found[file] for file, name in PUBLIC_NAMES.items() if file in found})
    files = [(name, found[name]) for name in sorted(found) if _is_public(name.split("."))]
    if unknown := sorted(set(wanted) - {name.partition(".")[0] for name, _ in files}):
        raise ValueError(
            f"no source file in the standard library for {', '.join(unknown)}: name a top-level "
            "module that is written in Python, such as argparse"
        )
    return [(name, file) for name, file in files if not wanted or name.partition(".")[0] in wanted]


def _package_files(root: Path, package: Path) -> Iterator[tuple[str, Path]]:
    """Yield the modules of a package, its subpackages included."""
    for file in package.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def _is_public(parts: Iterable[str]) -> bool:
    """Whether no part of a qualified name is private or skipped."""
    return not any(part.startswith("_") or part in SKIPPED for part in parts)


def _read_file(module: str, file: Path) -> list[Passage]:
    """Read the docstrings of one source file, in the order of the file."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    passages = []
    for name, node in [(module, tree), *_definitions(tree, module)]:
        words = _first_words(ast.get_docstring(node) or "")
        if len(words) >= MIN_WORDS:
            passages.append(Passage(name, " ".join(words)))
    return passages


def _first_words(docstring: str) -> list[str]:
    """Return the words of a docstring's first paragraphs, up to its first example."""
    words: list[str] = []
    for paragraph in docstring.split(">>>", 1)[0].split("\n\n"):
        words += paragraph.split()
        if len(words) >= ENOUGH_WORDS:
            break
    return words[:MAX_WORDS]


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Yield the public classes, functions and methods under a node, with their qualified names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            if not child.name.startswith("_"):
                name = f"{prefix}.{child.name}"
                yield name, child
                if isinstance(child, ast.ClassDef):
                    yield from _definitions(child, name)
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler):
            yield from _definitions(child, prefix)  # platform-dependent definitions
