"""The reference's hidden states and vectors, each computed once."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert.verify.bounds import ROUNDING_MARGIN, ROUTER_MARGIN
from nomicbert.verify.formula import read_steps
from nomicbert.verify.references import Encoder, quiet, token_ids
from nomicbert.verify.texts import TEXTS, Batch


class Truth:
    """Hidden states and vectors of the reference.

    Attributes:
        encoder: the reference for hidden states.
        folder: of the checkpoint that it reads.
        batch: the texts of the hidden states.
        whole: whether vectors come from sentence-transformers, tokenizer and pooling included.
        name: of the reference for vectors.
        states: (layers + 1, tokens, hidden) in float32, with the reference's default attention.
        clear: (tokens,) bool, tokens whose expert routing is stable under rounding; None for all.
        vectors: (texts, dim) float64, without L2 unless it is one of the checkpoint's modules.
        clear_texts: (texts,) bool, the same per text; None for all.
    """

    def __init__(
        self, encoder: Encoder, encoder_folder: Path, folder: Path, batch: Batch, longest: int
    ) -> None:
        """Compute hidden states and vectors in float32.

        Args:
            encoder: the reference.
            encoder_folder: of config.json, tokenizer and weights.
            folder: of modules.json.
            batch: the texts of the hidden states.
            longest: limit of tokens per text.
        """
        self.encoder, self.folder, self.batch = encoder, folder, batch
        modules = (folder / "modules.json").is_file() and not encoder.reason
        self.whole = modules and find_spec("sentence_transformers") is not None
        self.lacks_library = modules and not self.whole
        self.states = encoder.states(batch, torch.float32, encoder.forms[0])
        self.clear = _clear_tokens(encoder.margins(batch), batch)
        self.clear_texts: Tensor | None = None
        if self.whole:
            self.name = f"sentence-transformers {version('sentence-transformers')}"
            model = sentence_transformer(folder, encoder.device, torch.float32)
            with quiet():
                # the empty prompt disables the checkpoint's default prompt
                found = model.encode(list(TEXTS), prompt="", show_progress_bar=False)
            self.vectors = torch.from_numpy(found).double()
            return
        self.name = f"{encoder.name}, pooled by formula"
        ids = token_ids(encoder_folder, TEXTS, longest)
        texts = Batch(ids, [[0] * len(row) for row in ids])
        last, steps = encoder.states(texts, torch.float32, encoder.forms[0])[-1], read_steps(folder)
        self.vectors = torch.stack([steps.vector(h) for h in torch.split(last, texts.lengths)])
        margins = encoder.margins(texts)
        if margins is not None:
            least = [part.min() for part in torch.split(margins, texts.lengths)]
            self.clear_texts = torch.stack(least) > ROUNDING_MARGIN

    @property
    def unit(self) -> Tensor:
        """The vectors with L2."""
        return F.normalize(self.vectors)


def sentence_transformer(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """sentence-transformers' model of a folder."""
    from sentence_transformers import SentenceTransformer

    with quiet():
        return SentenceTransformer(
            str(folder), device=str(device), local_files_only=True, model_kwargs={"dtype": dtype}
        )


def _clear_tokens(margins: Tensor | None, batch: Batch) -> Tensor | None:
    """Tokens whose expert routing is stable under rounding.

    A token that is routed differently changes its text's other tokens in the next attention. So a
    text is excluded as a whole if rounding alone can flip the routing of one of its tokens.
    """
    if margins is None:
        return None
    settled = [part.min() > ROUNDING_MARGIN for part in torch.split(margins, batch.lengths)]
    repeats = torch.tensor(batch.lengths)
    return (margins > ROUTER_MARGIN) & torch.stack(settled).repeat_interleave(repeats)
