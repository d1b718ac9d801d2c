"""ONNX Runtime: the model as torch.onnx exports it, in fp32 and with int8 GEMMs.

"onnxruntime-ours" runs the files of `nomicbert export`: fp32, and q8 with a scale per token.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nomicbert import export
from nomicbert.benchmark.exports import kept
from nomicbert.benchmark.peers import AbsentError, Runner, Setting
from nomicbert.benchmark.sentence import PaddedRunner, load_sentence
from nomicbert.errors import ExportError
from nomicbert.export.graph import Precision
from nomicbert.export.run import FILES
from nomicbert.loading.json_settings import read_json

INPUTS = ("input_ids", "attention_mask")
FILE = "model.onnx"
LIBRARIES = ("onnx", "onnxscript")
OURS = "onnxruntime-ours"
# Shape (texts, tokens) of the traced example, and the upper limits of the dynamic shape.
EXAMPLE = (2, 24)
MOST_TEXTS, MOST_TOKENS = 4096, 8192


def load(family: str, dtype: str, setting: Setting) -> Runner:
    """See peers.Peer.load."""
    need("onnxruntime")
    if family == OURS:
        return Session(exported_by_us(setting, "q8" if dtype == "int8" else "fp32"), setting)
    return Session(quantized(setting) if dtype == "int8" else exported(setting), setting)


def need(*modules: str) -> None:
    """Raise an AbsentError if a module is not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise AbsentError(f"{module.replace('_', '-')} is not installed")


def exported(setting: Setting) -> Path:
    """ONNX file of the checkpoint with its pooling, in the cache; exports it if missing."""
    return kept(setting, "onnx", LIBRARIES, lambda folder: _export(setting, folder / FILE)) / FILE


def quantized(setting: Setting) -> Path:
    """The same with int8 weights (a scale per output channel) and dynamic activation scales."""

    def make(folder: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = exported(setting)
        with without_chatter():
            quantize_dynamic(path, folder / FILE, weight_type=QuantType.QInt8, per_channel=True)

    return kept(setting, "onnx-int8", (*LIBRARIES, "onnxruntime"), make) / FILE


def exported_by_us(setting: Setting, precision: Precision) -> Path:
    """File of `nomicbert export` in a precision, in the cache; exports it if missing.

    Raises: AbsentError: a library is missing, or the checkpoint cannot be exported.
    """
    need("onnx")
    # the exporter's own code, because its version does not change with every commit
    code = [path.read_bytes() for path in sorted(Path(export.__file__).parent.glob("*.py"))]

    def make(folder: Path) -> None:
        try:
            export.onnx(
                setting.folder, folder / "export", dtypes=(precision,), task="feature-extraction"
            )
        except ExportError as error:
            raise AbsentError(str(error)) from error

    libraries = ("nomicbert", "onnx")
    folder = kept(setting, f"onnx-ours-{precision}", libraries, make, code)
    return folder / "export/onnx" / FILES[precision]


def session_of(path: Path, threads: int) -> Any:
    """An onnxruntime.InferenceSession for a file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # otherwise its idle threads keep spinning and slow down the next peer
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _export(setting: Setting, path: Path) -> None:
    need("onnx", "onnxscript")
    sentence = load_sentence(setting, "float32")
    config = read_json(setting.encoder / "config.json")
    most = config["max_position_embeddings"] if config["model_type"] == "bert" else MOST_TOKENS
    axes = {
        0: torch.export.Dim("texts", min=1, max=MOST_TEXTS),
        1: torch.export.Dim("tokens", min=2, max=most),
    }
    ids = torch.randint(1, 100, EXAMPLE)
    mask = torch.ones_like(ids)
    mask[1, EXAMPLE[1] // 2 :] = 0
    with without_chatter():
        program = torch.onnx.export(
            sentence,
            (ids, mask),
            dynamo=True,
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            input_names=INPUTS,
            output_names=["vectors"],
            verbose=False,
        )
        program.save(path, external_data=True)  # type: ignore[union-attr]


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Silence exporters, which use logging, warnings, stdout and stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(before)


class Session(PaddedRunner):
    """An inference session on the CPU."""

    def __init__(self, path: Path, setting: Setting) -> None:
        """Read and optimise the file."""
        super().__init__(setting)
        self.session = session_of(path, setting.threads)
        self.inputs = {given.name for given in self.session.get_inputs()}
        # the vectors; our exports have the hidden states before them
        self.outputs = [self.session.get_outputs()[-1].name]

    def batch(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """See PaddedRunner."""
        given = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self.inputs:
            given["token_type_ids"] = np.zeros_like(ids)
        found: np.ndarray = self.session.run(self.outputs, given)[0]
        return found
