"""Texts -> padded token ids, and all outputs of a text in one dictionary.

Where in the flow: beside it. `Embedder.preprocess` and `encode(..., output_value=None)` return what
sentence-transformers hands from module to module; `encode` itself never pads.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from nomicbert.arguments import as_whole

# Settings of transformers' tokenizers, per modality: that of texts and of all are known here.
Processing = Mapping[str, Mapping[str, object]]
TEXT = ("text", "common")
# Those without an effect on a vector; texts are tokenised in lists, so tensors are made here.
NEUTRAL = ("padding", "pad_to_multiple_of", "return_tensors", "return_attention_mask")
# What cuts a text; anything else for `truncation` is refused.
CUTS = (True, "longest_first", "only_first")
PAIR_CUTS = (True, "longest_first")


class PaddedIds(TypedDict):
    """Token ids of B texts, padded on the right.

    Attributes:
        input_ids: (B, S) int64.
        token_type_ids: (B, S) int64, zeros.
        attention_mask: (B, S) int64, 0 where padded.
        modality: "text".
    """

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor
    modality: str


class Features(PaddedIds, total=False):
    """The same, and what is there if a prompt was given.

    Attributes:
        prompt_length: leading tokens of each text that are the prompt's.
    """

    prompt_length: int


class TextOutputs(Features):
    """All that `encode` computes of one text of S tokens: ids (S,) without padding, and outputs.

    Attributes:
        token_embeddings: (S, hidden_size), in the model's dtype.
        sentence_embedding: (dim,) fp32.
    """

    token_embeddings: Tensor
    sentence_embedding: Tensor


def padded(ids: Sequence[Sequence[int]], pad: int) -> Features:
    """The token ids of some texts as tensors; `pad` fills them up."""
    longest = max(map(len, ids), default=0)
    found = torch.full((len(ids), longest), pad)
    mask = torch.zeros(len(ids), longest, dtype=torch.int64)
    for row, text in enumerate(ids):
        found[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
        mask[row, : len(text)] = 1
    return Features(
        input_ids=found,
        token_type_ids=torch.zeros_like(found),
        attention_mask=mask,
        modality="text",
    )


def all_outputs(
    features: Sequence[Features], hidden: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[TextOutputs]:
    """One dictionary per text.

    Args:
        features: of each text, alone.
        hidden: states of each text, (tokens, hidden_size).
        vectors: of each text, (dim,).
    """
    return [
        TextOutputs(**_first(one), token_embeddings=states, sentence_embedding=vector)
        for one, states, vector in zip(features, hidden, vectors, strict=True)
    ]


def _first(features: Features) -> Features:
    """The only text of a padded batch."""
    first: dict[str, Any] = {**features}
    first = {name: x[0] if isinstance(x, Tensor) else x for name, x in first.items()}
    return cast("Features", first)


def stated_length(processing: Processing | None, cuts: Collection[object] = CUTS) -> int | None:
    """The maximum length that `processing_kwargs` asks for, or None.

    Args:
        processing: of the call.
        cuts: values of "truncation" that mean what is done.

    Raises: TypeError, ValueError: an entry that cannot be honoured; the message names it.
    """
    length = None
    if not isinstance(processing, Mapping | None):
        raise TypeError(f"processing_kwargs must be a dict, not {processing!r:.80}")
    for kind, settings in (processing or {}).items():
        if kind not in TEXT or not isinstance(settings, Mapping):
            raise TypeError(
                f"processing_kwargs[{kind!r}] is not supported: it may have 'text' and 'common', "
                "each a dict"
            )
        for name, value in settings.items():
            where = f"processing_kwargs[{kind!r}][{name!r}]"
            if name == "max_length":
                length = as_whole(where, value)
            elif name == "truncation":
                if value not in cuts:
                    raise ValueError(f"{where} must be True, not {value!r}: texts are cut")
            elif name not in NEUTRAL:
                raise TypeError(f"{where} is not supported: give max_length, or leave it out")
    return length


def call_length(
    max_length: int | None, processing: Processing | None, cuts: Collection[object] = CUTS
) -> int | None:
    """The maximum length of a call, which may be given as `max_length` or as in `stated_length`.

    Raises: TypeError, ValueError: as there; a length that is given twice.
    """
    length = stated_length(processing, cuts)
    if length is None or max_length in (None, length):
        return max_length if length is None else length
    raise ValueError("give max_length or processing_kwargs['text']['max_length'], not both")
