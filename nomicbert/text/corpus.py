"""The demo's corpus: what the docstrings of Python's standard library say, as short passages.

Where in the flow: `nomicbert demo` reads these passages and indexes them. The source files of the
running interpreter are parsed, never imported: no side effects, no network. Modules written in C
(math, itertools, ...) have no source file and do not occur.

Source: `sys.stdlib_module_names` and `sysconfig.get_path("stdlib")` say what the library is.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

# A passage is whole paragraphs until enough words say what the thing is for. More would blur it:
# a vector is an average, and what follows is usage, lists of classes and history.
ENOUGH_WORDS = 12
MAX_WORDS = 80
MIN_WORDS = 3  # shorter docstrings ("See above.") answer nothing

# Not what a reader looks for: tests, the interpreter's own tools, tables of characters, jokes, what
# Python 3.12 dropped, the Windows twin of posixpath.
SKIPPED = frozenset(
    "antigravity distutils encodings ensurepip idle_test idlelib lib2to3 ntpath posixpath "
    "pydoc_data test tests this turtledemo".split()
)
# Source files that stand for a public name: the C modules' Python forms, and os.path.
PUBLIC_NAMES = {
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "posixpath": "os.path",
}

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Passage:
    """One docstring: the qualified name it belongs to and the beginning of what it says."""

    name: str
    summary: str

    @property
    def text(self) -> str:
        """What is embedded: the name carries meaning too."""
        return f"{self.name}: {self.summary}"


def read_passages(limit: int | None = None, modules: Sequence[str] = ()) -> list[Passage]:
    """Collect passages from the standard library, in an order that is the same on every call.

    Modules take turns (the first docstring of each, then the second of each, ...), so a small
    limit still covers the whole library and a large module cannot crowd out the others.

    Args:
        limit: the most passages to return; None for all.
        modules: top-level modules to read, such as "argparse"; empty for all of them.
    Returns: passages with distinct names and distinct summaries.
    Raises: ValueError: a module has no source file in this interpreter's standard library, or no
        docstring was found.
    """
    root = Path(sysconfig.get_path("stdlib"))
    turns = zip_longest(*(_read_file(*found) for found in _source_files(root, modules)))
    names: set[str] = set()
    summaries: set[str] = set()
    passages: list[Passage] = []
    for passage in (passage for turn in turns for passage in turn if passage is not None):
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
    # They replace the few lines that stand under the public name and import from C.
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
    """Tell whether no part of a qualified name is private or skipped."""
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
    """Take the paragraphs that a docstring opens with, up to its first example."""
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
            yield from _definitions(child, prefix)  # a definition that depends on the platform
