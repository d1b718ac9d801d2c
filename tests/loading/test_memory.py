"""Cost of loading: memory proportional to the parameters, and no import of torch's compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from nomicbert_kernels import compute_dtype
from tests.support.checkpoints import build_checkpoint

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
# Memory that torch, oneDNN and the allocator keep, independent of the size of the model.
SLACK = 16 * 2**20

# Anonymous memory only: pages of the mapped file belong to the system's cache.
MEASURE = """
import ctypes, json, sys, threading, time
import torch
from nomicbert import NomicBert

def anonymous():
    text = open("/proc/self/status").read()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

def peak(work):
    seen, done = [anonymous()], threading.Event()
    def watch():
        while not done.is_set():
            seen.append(anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    result = work()
    done.set()
    watcher.join()
    return result, max(*seen, anonymous())

@torch.inference_mode()
def encode(model):
    return model(torch.tensor([[2, 7, 9], [4, 5, 6]])).last_hidden_state

tiny, folder, dtype = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3])
encode(NomicBert.from_pretrained(tiny, dtype=dtype))  # threads, oneDNN, lazy imports
base = anonymous()
model, loading = peak(lambda: NomicBert.from_pretrained(folder, dtype=dtype))
_, running = peak(lambda: encode(model))
held = sum(p.numel() * p.element_size() for p in model.parameters())
getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
found = {"loading": loading - base, "running": running - base, "kept": anonymous() - base}
print(json.dumps({"held": held, **found}))
"""
NO_COMPILER = """
import sys, torch
from nomicbert import NomicBert
model = NomicBert.from_pretrained(sys.argv[1])
with torch.inference_mode():
    model(torch.tensor([[2, 7, 9]]))
print([name for name in ("torch._dynamo", "torch._inductor", "triton") if name in sys.modules])
"""


def run(code: str, *args: object, **environment: str) -> Any:
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'kernels')!r}]\n"
    command = [sys.executable, "-c", path + code, *map(str, args)]
    env = {**os.environ, **environment}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    tiny = build_checkpoint(tmp_path_factory.mktemp("tiny"), "nomic-v1.5")
    shape = {"n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 6}
    return tiny, build_checkpoint(tmp_path_factory.mktemp("wide"), "nomic-v1.5", **shape)


@pytest.mark.slow
@pytest.mark.all_threads
@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("dtype", "mapped"), [("float32", "1"), ("float32", "0"), ("bfloat16", "1")]
)
def test_loading_holds_one_copy_at_most_and_running_two(
    folders: tuple[Path, Path], dtype: str, mapped: str
) -> None:
    tiny, folder = folders
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.get_tensor("emb_ln.bias").dtype == torch.float32
    seen = json.loads(run(MEASURE, tiny, folder, dtype, NOMICBERT_MAP_WEIGHTS=mapped))
    size = 4 if dtype == "float32" else 2
    assert seen["held"] > 50e6 * size  # 57 million parameters
    # of a parameter that is on disk in another dtype there is a copy, of the others a view
    copied = 1 if dtype != "float32" or mapped == "0" or sys.platform != "linux" else 0
    assert (copied - 0.1) * seen["held"] < seen["loading"]
    assert seen["loading"] <= (copied + 0.1) * seen["held"] + SLACK
    # weights computed in float32 are packed in float32, in addition to the 16-bit parameters
    cpu, kept = torch.device("cpu"), getattr(torch, dtype)
    copies = copied + compute_dtype(cpu, kept).itemsize / kept.itemsize
    assert seen["kept"] <= (copies + 0.1) * seen["held"] + SLACK
    # up and gate are the largest weight: while it is packed there may be a float32 copy of it,
    # and memory of earlier copies that the allocator has not returned
    passing = 3 * 4 * 2 * 3072 * 768 if kept.itemsize == 2 and copies == 3 else 0
    assert seen["running"] <= (copies + 0.1) * seen["held"] + passing + SLACK


def test_loading_and_running_need_no_compiler(folders: tuple[Path, Path]) -> None:
    assert run(NO_COMPILER, folders[0]).strip() == "[]"
