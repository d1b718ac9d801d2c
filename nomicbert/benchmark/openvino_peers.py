"""OpenVINO: the converted model in fp32, with bf16 GEMMs, and in two forms of int8.

"openvino-weights" stores weights in int8 and lets the CPU plugin quantise activations dynamically.
"openvino-ptq" is NNCF's full quantisation, calibrated on texts of the kinds in the benchmark.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nomicbert.benchmark.batching import padded
from nomicbert.benchmark.exports import kept
from nomicbert.benchmark.onnx_peers import INPUTS, need, without_chatter
from nomicbert.benchmark.peers import Runner, Setting
from nomicbert.benchmark.sentence import PaddedRunner, load_sentence, pad_id

# Limit of texts for calibration.
SAMPLE = 48
# Adjacent activations that share a scale. Smaller groups are slower; with groups as wide as a row
# the plugin ignores the setting and computes in fp32.
GROUP = "128"
FILE = "model.xml"


def load(family: str, dtype: str, setting: Setting) -> Runner:
    """See peers.Peer.load."""
    need("openvino")
    if dtype == "int8":
        need("nncf")
    options = {"INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32"}
    name = {"openvino-weights": "weights", "openvino-ptq": "ptq"}.get(family, "float")
    if name == "weights":
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP
    return Compiled(_file(name, setting), options, setting)


def _file(name: str, setting: Setting) -> Path:
    """File of the model in this form in the cache; converts it if missing."""

    def make(folder: Path) -> None:
        import openvino

        model = _converted(setting) if name == "float" else _in_int8(name, setting)
        openvino.save_model(model, folder / FILE, compress_to_fp16=False)

    libraries = ("openvino",) if name == "float" else ("openvino", "nncf")
    given = setting.sample[:SAMPLE] if name == "ptq" else ""
    return kept(setting, f"openvino-{name}", libraries, make, given) / FILE


def _in_int8(name: str, setting: Setting) -> Any:
    """Quantise the model with NNCF: weights only, or fully."""
    import nncf
    import openvino

    model = openvino.Core().read_model(_file("float", setting))
    with without_chatter():
        if name == "weights":
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        pad = pad_id(setting)
        rows = [
            dict(zip(INPUTS, padded([ids], pad), strict=True)) for ids in setting.sample[:SAMPLE]
        ]
        return nncf.quantize(
            model,
            nncf.Dataset(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
        )


def _converted(setting: Setting) -> Any:
    """Convert the checkpoint with its pooling by tracing."""
    import openvino

    sentence = load_sentence(setting, "float32")
    ids = torch.randint(1, 100, (2, 24))
    example = dict(zip(INPUTS, (ids, torch.ones_like(ids)), strict=True))
    with without_chatter():
        model = openvino.convert_model(sentence, example_input=example)
    for tensor in model.inputs:
        tensor.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    return model


class Compiled(PaddedRunner):
    """A compiled model and its inference request."""

    def __init__(self, path: Path, options: dict[str, str], setting: Setting) -> None:
        """Compile the file for the CPU."""
        import openvino

        super().__init__(setting)
        fixed = {"INFERENCE_NUM_THREADS": setting.threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(path, "CPU", fixed | options)
        self.request: Any = compiled.create_infer_request()

    def batch(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """See PaddedRunner."""
        self.request.infer(dict(zip(INPUTS, (ids, mask), strict=True)))
        # a copy: the next call writes into the same memory
        found: np.ndarray = self.request.get_output_tensor(0).data.copy()
        return found
