"""infinity-emb, strings to vectors: its engine, which queues and batches texts around torch."""

import asyncio
import logging
from typing import Any

import numpy as np

from nomicbert.benchmark.batching import Batching, by_count
from nomicbert.benchmark.onnx_peers import need, without_chatter
from nomicbert.benchmark.peers import AbsentError, Runner, Setting
from nomicbert.benchmark.sentence import known
from nomicbert.benchmark.workloads import Case

# Its default; a started engine cannot change it.
BATCH = 32
# Limit of seconds for one short text: if its threads die, the engine waits forever.
PATIENCE = 60.0


def load(family: str, dtype: str, setting: Setting) -> Runner:
    """See peers.Peer.load."""
    need("infinity_emb", "sentence_transformers")
    if not (setting.folder / "modules.json").is_file():
        raise AbsentError("the checkpoint has no modules.json")
    known(setting)
    return Engine(setting, dtype)


class Engine:
    """A started engine, and the event loop in which it is asked.

    Attributes:
        from_texts: see Runner.
    """

    from_texts = True

    def __init__(self, setting: Setting, dtype: str) -> None:
        """Load and start it.

        Raises: AbsentError: it does not answer.
        """
        with without_chatter():
            self.engine = _engine(setting, dtype)
            self.loop = asyncio.new_event_loop()
            self.loop.run_until_complete(self.engine.astart())
            # its threads would keep the process from ending
            setting.closing.callback(self._stop)
            try:
                self.loop.run_until_complete(asyncio.wait_for(self._embed(["a"]), PATIENCE))
            except asyncio.TimeoutError as error:
                raise AbsentError(f"its engine gives no answer in {PATIENCE:.0f} s") from error

    def ways(self, case: Case) -> list[Batching]:
        """See Runner: the engine batches by itself."""
        return [by_count(case.lengths, 1 if case.is_latency else BATCH)]

    def vectors(self, case: Case, way: Batching) -> np.ndarray:
        """See Runner."""
        return self.loop.run_until_complete(self._embed(case.texts))

    async def _embed(self, texts: list[str]) -> np.ndarray:
        found, _ = await self.engine.embed(sentences=texts)
        return np.stack(found)

    def _stop(self) -> None:
        self.loop.run_until_complete(self.engine.astop())
        self.loop.close()


def _engine(setting: Setting, dtype: str) -> Any:
    """An AsyncEmbeddingEngine that is not started."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs
    finally:
        # its import replaces the handlers of the whole process
        root.handlers[:] = handlers
        root.setLevel(level)
    logging.getLogger("infinity_emb").setLevel(logging.WARNING)
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=str(setting.folder),
            trust_remote_code=False,
            engine="torch",
            device="cpu",
            dtype=dtype,
            batch_size=BATCH,
            # optimum's, which no longer exists for this transformers
            bettertransformer=False,
            model_warmup=False,
        )
    )
    for model in engine._model_replicas:
        # it adds L2 to the checkpoint's own modules
        model.normalize_embeddings = False
    return engine
