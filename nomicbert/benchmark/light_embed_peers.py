"""light-embed, strings to vectors: its tokenisation and batches around ONNX Runtime.

It takes any ONNX file. Here that is the one of the peer "onnxruntime", with pooling inside, so its
own pooling and L2 are left out.
"""

from unittest.mock import patch

import numpy as np

from nomicbert.benchmark.batching import COUNTS, Batching, by_count
from nomicbert.benchmark.onnx_peers import exported, need, quantized, session_of
from nomicbert.benchmark.peers import AbsentError, Runner, Setting
from nomicbert.benchmark.workloads import Case

# It reads all of them.
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def load(family: str, dtype: str, setting: Setting) -> Runner:
    """See peers.Peer.load."""
    need("light_embed", "onnxruntime")
    for name in FILES:
        if not (setting.encoder / name).is_file():
            raise AbsentError(f"it needs {name}, which the checkpoint does not have")
    return LightEmbed(setting, dtype)


class LightEmbed:
    """Its `TextEmbedding`, which sorts the texts by their characters.

    Attributes:
        from_texts: see Runner.
    """

    from_texts = True

    def __init__(self, setting: Setting, dtype: str) -> None:
        """Export the checkpoint if needed, and load the file."""
        from light_embed import TextEmbedding

        path = quantized(setting) if dtype == "int8" else exported(setting)
        config = {
            "onnx_file": str(path),
            "onnx_output_map": {"vectors": "sentence_embedding"},
            "normalize": False,
        }
        self.counts = COUNTS[setting.device.type]
        # it has no option for the number of threads, and its own session would take all cores
        session = session_of(path, setting.threads)
        with patch("onnxruntime.InferenceSession", return_value=session):
            self.model = TextEmbedding(str(setting.encoder), model_config=config, device="cpu")

    def ways(self, case: Case) -> list[Batching]:
        """See Runner."""
        counts = [count for count in self.counts if count < 2 * len(case.texts)]
        return [by_count(case.lengths, count) for count in counts]

    def vectors(self, case: Case, way: Batching) -> np.ndarray:
        """See Runner."""
        found: np.ndarray = self.model.encode(case.texts, batch_size=way.count)
        return found
