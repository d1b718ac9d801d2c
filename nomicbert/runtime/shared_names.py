"""Names of sentence-transformers that mean the same in both facades, each in terms of others.

Where in the flow: a base class of `Embedder` and `CrossEncoder`.
Source: the public names of BaseModel in sentence-transformers 6.
"""

import os
from collections.abc import Callable, Sequence

import torch

from nomicbert.arguments import as_devices
from nomicbert.config import EncoderConfig
from nomicbert.runtime.module_names import ModuleNames
from nomicbert.runtime.pool import WorkerPool
from nomicbert.text.tokenizer import Tokenizer

Evaluator = Callable[["SharedNames", str | None], dict[str, float] | float]
# Processes of a pool on a machine without a GPU.
CPU_PROCESSES = 4


class SharedNames(ModuleNames):
    """The names that are not needed for anything else."""

    @property
    def config(self) -> EncoderConfig:
        """The encoder's configuration."""
        return self._encoder_config

    @property
    def processor(self) -> Tokenizer:
        """The tokenizer."""
        return self._tokenizer

    @property
    def modalities(self) -> list[str]:
        """What can be given: texts."""
        return ["text"]

    def supports(self, modality: str | tuple[str, ...]) -> bool:
        """Whether inputs of this kind can be given."""
        return modality in self.modalities

    def save(
        self,
        path: str | os.PathLike[str],
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: Sequence[str] | None = None,
        safe_serialization: bool | None = True,
    ) -> None:
        """`save_pretrained`."""
        self.save_pretrained(
            path, model_name, create_model_card, train_datasets, safe_serialization
        )

    def get_model_kwargs(self) -> list[str]:
        """Further keywords of a call that the checkpoint's modules take: none."""
        return []

    def get_max_seq_length(self) -> int:
        """`max_seq_length`."""
        return self.max_seq_length

    def evaluate(
        self, evaluator: Evaluator, output_path: str | os.PathLike[str] | None = None
    ) -> dict[str, float] | float:
        """Call an evaluator of sentence-transformers with this model.

        Args:
            evaluator: called as evaluator(model, output_path).
            output_path: folder for its files, made if it does not exist; None: no files.

        Returns: what it returns: values by name, or one value.
        """
        if output_path is not None:
            os.makedirs(output_path, exist_ok=True)
        return evaluator(self, None if output_path is None else os.fspath(output_path))

    def start_multi_process_pool(
        self, target_devices: Sequence[torch.device | str] | None = None
    ) -> WorkerPool:
        """Start a process on each device, for several calls with `pool=pool`.

        The script needs `if __name__ == "__main__":`. The model stays where it is; the processes
        get it with the first call, and again when it has changed.

        Args:
            target_devices: as ["cuda:0", "cuda:1"]; None: all GPUs, or four processes on the CPU.

        Raises: ValueError: an unavailable device, or a GPU listed twice.
        """
        if target_devices is None:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            target_devices = [f"cuda:{i}" for i in range(count)] or ["cpu"] * CPU_PROCESSES
        return WorkerPool(as_devices(target_devices))

    @staticmethod
    def stop_multi_process_pool(pool: WorkerPool) -> None:
        """End the processes of a pool: `pool.close()`."""
        pool.close()
