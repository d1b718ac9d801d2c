"""Environment variables: those that the sources read, and those that docs/environment.md lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

READERS = ("environ.get", "environ.setdefault", "getenv")
OURS = re.compile(r"NOMICBERT_[A-Z_]*[A-Z]")
ROW = re.compile(r"^\| `([A-Z_]+)` \|", re.M)


def documented(page: str) -> tuple[list[str], list[str]]:
    """The variables of the page's two tables: the package's, and those of a clone in addition."""
    package, clone = page.split("What the tests")
    return ROW.findall(package), ROW.findall(clone)


def read_by(folder: Path) -> set[str]:
    """Variables that the Python files below a folder read, or name as their own."""
    return {name for path in folder.rglob("*.py") for name in _of_file(path)}


def found_in_tests(folder: Path) -> set[str]:
    """Variables of this project that tests read; `read_by` would take in what they set."""
    texts = (path.read_text("utf-8") for path in folder.rglob("*.py"))
    read = (re.findall(r"environ(?:\.get\(|\[)(.+?)[\])]", text) for text in texts)
    return {name for found in read for part in found for name in OURS.findall(part)} | {
        name for path in folder.rglob("conftest.py") for name in OURS.findall(path.read_text())
    }


def _of_file(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text("utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        for name in _names_read(node):
            yield from _strings(
                constants.get(name.id, name) if isinstance(name, ast.Name) else name
            )


def _names_read(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions that name the variables that a node reads."""
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called.endswith(READERS):
            yield node.args[0]
        elif called == "map" and ast.unparse(node.args[0]).endswith(READERS):
            yield node.args[1]
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        if ast.unparse(node.value).endswith("environ"):
            yield node.slice
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        # a name that no reader above was given, such as that of a constant in another module
        if OURS.fullmatch(node.value):
            yield node


def _strings(value: ast.expr) -> Iterator[str]:
    found = value.elts if isinstance(value, ast.Tuple) else [value]
    for item in found:
        assert isinstance(item, ast.Constant), f"which variable is {ast.unparse(value)}?"
        yield item.value
