"""Node and Chromium, for tests of exports with Transformers.js.

The libraries lie in node_modules of `examples/transformers_js`, of its folder xenova and of
`tests/js`; `make test-js` fills them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert import Embedder
from nomicbert.user_warnings import PromptWarning, TruncationWarning

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "transformers_js"
TESTS = ROOT / "tests" / "js"
# folder of its scripts -> the library that it tries
LIBRARIES = {"huggingface": EXAMPLE, "xenova": EXAMPLE / "xenova"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def node(script: Path, *arguments: str, timeout: float = 300) -> dict[str, Any]:
    """Run a script that prints JSON last; fails the test with its stderr if it fails."""
    done = run_node(script, *arguments, timeout=timeout)
    assert done.returncode == 0, f"{script.name}:\n{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_node(
    script: Path, *arguments: str, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a script with node; fails the test where node or its libraries are missing."""
    program = shutil.which("node")
    if program is None:
        pytest.fail("node is missing: install Node.js 20 or newer", pytrace=False)
    for folder in (*LIBRARIES.values(), TESTS):
        if not (folder / "node_modules").is_dir():
            where = folder.relative_to(ROOT)
            pytest.fail(f"{where}/node_modules is missing: run `make test-js`", pytrace=False)
    command = [program, str(script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, cwd=EXAMPLE
    )


def browser() -> str:
    """Path of a Chromium; fails the test where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        names = ", ".join(BROWSERS)
        pytest.fail(
            f"none of {names} is on the PATH: install Debian's package with "
            "`apt-get install chromium`",
            pytrace=False,
        )
    return found


def vectors_of(
    library: str, script: str, model: Path, texts: Sequence[str], where: Path, *options: str
) -> dict[str, Any]:
    """Run embed.mjs or own_vectors.mjs of a library; lists of vectors become float32 arrays."""
    file = where / "texts.json"
    file.write_text(json.dumps(list(texts)), "utf-8")
    path = LIBRARIES[library] / f"{script}.mjs"
    found = node(path, str(model), "--texts", str(file), "--json", *options)
    rows = {
        name: np.array(found[name], np.float32) for name in ("pooled", "vectors") if name in found
    }
    return found | rows


def encode(model: Path | Embedder, texts: Sequence[str], **keywords: Any) -> np.ndarray:
    """`Embedder.encode` without a prompt; cuts and missing prompts are meant here."""
    embedder = model if isinstance(model, Embedder) else Embedder(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        warnings.simplefilter("ignore", PromptWarning)
        return np.asarray(embedder.encode(list(texts), prompt="", **keywords))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a` with the same row of `b`."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / norms)
