"""The public signatures: no Any, exact results, and what a type checker says of users' scripts."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import nomicbert

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Both report "path:line: error: ..." or "path:line:column - error: ...".
ERROR = re.compile(r"(\w+)\.py:(\d+)(?::\d+)?(?: -|:) error")
CHECKERS = {
    "mypy": ["mypy", "--strict", "--no-error-summary", "--config-file=", "--no-pretty"],
    "basedpyright": ["basedpyright", "--level", "error"],
}


JSON = {("EncoderConfig.__init__", "source")}


def name_only(value: object) -> str:
    """Of a test's parameters: a function's address differs between processes."""
    return value if isinstance(value, str) else ""


def mistakes() -> set[int]:
    lines = (HERE / "mistakes.py").read_text("utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# MISTAKE")}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_what_a_type_checker_says(checker: str, tmp_path: Path) -> None:
    """Nothing of a right script; of the other one every line that is wrong, and no other."""
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    command = [sys.executable, "-m", *CHECKERS[checker]]
    if checker == "mypy":
        command += [f"--cache-dir={ROOT / '.mypy_cache/users'}"]
        command += ["--follow-imports=silent", "--ignore-missing-imports"]
    path = f"{ROOT}:{ROOT / 'kernels'}"
    done = subprocess.run(
        [*command, "user_script.py", "mistakes.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE,
        env={**os.environ, "MYPYPATH": path, "PYTHONPATH": path},
    )
    found: dict[str, set[int]] = {"user_script": set(), "mistakes": set()}
    for name, line in ERROR.findall(done.stdout):
        found.setdefault(name, set()).add(int(line))
    assert found == {"user_script": set(), "mistakes": mistakes()}, done.stdout + done.stderr
    assert len(mistakes()) >= 5


def public_functions() -> Iterator[tuple[str, Any]]:
    """Every function that the public names offer, but what torch and Exception have."""
    for name in nomicbert.__all__:
        thing = getattr(nomicbert, name)
        if inspect.ismodule(thing):
            members = {member: getattr(thing, member) for member in thing.__all__}
            yield from (
                (f"{name}.{member}", value)
                for member, value in sorted(members.items())
                if inspect.isfunction(value)
            )
        if not inspect.isclass(thing):
            continue
        inherited = {m for base in (nn.Module, Exception, tuple) for m in vars(base)}
        for member in dir(thing):
            value = inspect.getattr_static(thing, member)
            own = any(
                member in vars(base) for base in thing.__mro__ if "nomicbert" in base.__module__
            )
            if not own or (member.startswith("_") and member != "__init__"):
                continue
            if isinstance(value, property):
                value = value.fget
            value = getattr(value, "__func__", value)
            if inspect.isfunction(value) and member not in inherited - {"forward", "__init__"}:
                yield f"{name}.{member}", value


@pytest.mark.parametrize(("name", "function"), [*public_functions()], ids=name_only)
def test_no_any_in_a_public_signature(name: str, function: Any) -> None:
    annotations = dict(inspect.getfullargspec(inspect.unwrap(function)).annotations)
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.name not in ("self", "cls"):
            assert parameter.annotation is not parameter.empty, f"{name}: {parameter.name}"
    assert signature.return_annotation is not signature.empty
    said = {key: str(value) for key, value in annotations.items()}
    wrong = {key: value for key, value in said.items() if re.search(r"\bAny\b", value)}
    # numpy's ndarray is generic in a shape, which nobody states; config.json holds anything
    wrong = {k: v for k, v in wrong.items() if "numpy" not in v and (name, k) not in JSON}
    assert not wrong, f"{name}: {wrong}"


def without_types(function: Any) -> str:
    """Parameters with their kinds and defaults; the types are the type checkers' business."""
    found = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=found.empty))


def test_the_public_signatures_are_pinned() -> None:
    """A change of the interface is deliberate: write the new lines into the file."""
    found = [f"{name}{without_types(function)}" for name, function in public_functions()]
    assert found == (HERE / "public_api.txt").read_text("utf-8").splitlines()


def test_the_walk_sees_the_functions() -> None:
    names = {name for name, _ in public_functions()}
    assert {
        "Embedder.encode", "Embedder.encode_query", "Embedder.from_pretrained", "Embedder.device",
        "Embedder.__init__", "CrossEncoder.predict", "CrossEncoder.rank", "NomicBert.forward",
        "NomicBert.from_pretrained", "NomicBertForQuestionAnswering.forward", "TextError.__init__",
        "embed.text",
    } <= names  # fmt: skip


def test_encode_shows_its_keywords() -> None:
    """Decorated methods keep the signature and the docstring that help() shows."""
    signature = inspect.signature(nomicbert.Embedder.encode)
    assert signature.parameters["precision"].default == "float32"
    assert len(signature.parameters) == 23
    assert "matryoshka_dim" in str(nomicbert.Embedder.encode.__doc__)


@pytest.mark.parametrize(
    ("call", "keyword", "nearest"),
    [
        (lambda e: e.encode(["a"], promt_name="x"), "promt_name", "prompt_name"),
        (lambda e: e.encode_query(["a"], normalise_embeddings=True), "normalise", "normalize_emb"),
        (lambda e: e.encode_iter(["a"], batchsize=3), "batchsize", "batch_size"),
        (lambda e: type(e).from_pretrained("x", devise="cpu"), "devise", "device"),
        (lambda e: nomicbert.NomicBert.from_pretrained("x", dtyp="auto"), "dtyp", "dtype"),
        (
            lambda e: nomicbert.CrossEncoder.predict(None, [], batch_token=1),
            "batch_token",
            "batch_t",
        ),
        (lambda e: nomicbert.CrossEncoder("x", num_label=1), "num_label", "num_labels"),
        (lambda e: nomicbert.embed.text(["a"], dimension=256), "dimension", "dimensionality"),
    ],
    ids=name_only,
)
def test_misspelt_keywords(call: Any, keyword: str, nearest: str) -> None:
    embedder = nomicbert.Embedder.__new__(nomicbert.Embedder)
    embedder._prompts = type("None_", (), {"query_name": None})()  # type: ignore[assignment]
    with pytest.raises(TypeError, match=f"has no keyword '{keyword}.*': did you mean '{nearest}"):
        call(embedder)
