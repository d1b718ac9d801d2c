"""CTranslate2: BERT checkpoints only, by its own converter; pooling and Dense run in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nomicbert.benchmark.exports import kept
from nomicbert.benchmark.onnx_peers import need, without_chatter
from nomicbert.benchmark.peers import AbsentError, Runner, Setting
from nomicbert.benchmark.sentence import PaddedRunner, Sentence
from nomicbert.loading.json_settings import read_json


def load(family: str, dtype: str, setting: Setting) -> Runner:
    """See peers.Peer.load."""
    need("ctranslate2", "transformers")
    if read_json(setting.encoder / "config.json")["model_type"] != "bert":
        raise AbsentError("CTranslate2 does not support the architecture")
    return Translated(_folder(setting), dtype, setting)


def _folder(setting: Setting) -> Path:
    """Folder of the converted model in the cache; converts it if missing."""

    def make(folder: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        with without_chatter():
            TransformersConverter(str(setting.encoder)).convert(str(folder), force=True)

    return kept(setting, "ctranslate2", ("ctranslate2",), make)


class Translated(PaddedRunner):
    """An encoder that returns hidden states; pooling and Dense run in torch."""

    def __init__(self, folder: Path, dtype: str, setting: Setting) -> None:
        """`dtype` is that of the GEMMs."""
        import ctranslate2

        super().__init__(setting)
        self.encoder: Any = ctranslate2.Encoder(
            str(folder),
            device="cpu",
            compute_type=dtype,
            intra_threads=setting.threads,
            inter_threads=1,
        )
        self.rest = Sentence(torch.nn.Identity(), setting.folder, torch.float32)

    def batch(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """See PaddedRunner."""
        import ctranslate2

        lengths = ctranslate2.StorageView.from_array(mask.sum(1).astype(np.int32))
        given = ctranslate2.StorageView.from_array(ids.astype(np.int32))
        output = self.encoder.forward_batch(given, lengths)
        hidden = torch.from_numpy(np.array(output.last_hidden_state))
        with torch.inference_mode():
            found: np.ndarray = self.rest.pool(hidden, torch.from_numpy(mask)).numpy()
        return found
