"""Names that `CrossEncoder` has because sentence-transformers' has them, each in terms of others.

Where in the flow: a base class of `CrossEncoder`.
Source: the public names of CrossEncoder in sentence-transformers 2 to 6.
"""

import warnings
from collections.abc import Sequence
from typing import ClassVar, NoReturn

from nomicbert.runtime.activation import Activation
from nomicbert.runtime.features import PAIR_CUTS, Features, Processing, padded, stated_length
from nomicbert.runtime.inputs import as_pairs, is_lone_pair
from nomicbert.runtime.prompt_tokens import prompt_tokens
from nomicbert.runtime.reranker_settings import CrossEncoderSettings
from nomicbert.runtime.shared_names import SharedNames
from nomicbert.text.tokenizer import Pair
from nomicbert.user_warnings import warn_of_cuts


class RerankerNames(SharedNames, CrossEncoderSettings):
    """The names that are not needed for anything else."""

    # indexing is refused with a hint below, and would make it iterable
    __iter__: ClassVar[None] = None

    def __getitem__(self, index: int) -> NoReturn:
        """Refuse: the modules are not sentence-transformers'."""
        raise TypeError(
            f"{type(self).__name__} is no list of modules: in place of model[0].model take "
            "reranker.model, and of model[0].tokenizer reranker.tokenizer"
        )

    @property
    def max_length(self) -> int:
        """Old name of `max_seq_length`."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        self.max_seq_length = value

    @property
    def default_activation_function(self) -> Activation:
        """Old name of `activation_fn`, with a DeprecationWarning."""
        # the words are part of the interface: callers filter the warning by them
        warnings.warn(
            "The `default_activation_function` property was renamed and is now deprecated: read "
            "`activation_fn`",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.activation_fn

    def is_singular_input(self, inputs: object) -> bool:
        """Whether `predict` returns the score of one pair for these inputs, and not of several."""
        return is_lone_pair(inputs)

    def preprocess(
        self,
        inputs: Sequence[Pair],
        prompt: str | None = None,
        processing_kwargs: Processing | None = None,
    ) -> Features:
        """Token ids of a list of pairs, padded to the longest: a dictionary of tensors.

        Args:
            inputs: B pairs.
            prompt: text to put before the first text of each; None for none, and not the default.
            processing_kwargs: {"text": {"max_length": ...}} in place of `max_seq_length`.

        Returns: input_ids, token_type_ids and attention_mask, each (B, S) int64; see `Features`.
        Raises: TypeError, ValueError: not a list of pairs, or an entry that cannot be honoured.
        Warns: TruncationWarning: pairs were cut.
        """
        pairs, lone = as_pairs(inputs)
        if lone:
            raise TypeError("inputs must be a list of pairs, not one pair: give [pair]")
        limit = self._limit(stated_length(processing_kwargs, PAIR_CUTS))
        text = self._prompts.choose(None, prompt or "")
        prompted = [(text + first, second) for first, second in pairs]
        ids, types, cut = self._tokenizer.encode_pairs(prompted, limit)
        warn_of_cuts(len(cut), len(ids), "pairs", limit)
        features = padded(ids, self._encoder_config.pad_token_id)
        features["token_type_ids"] = padded(types, 0)["input_ids"]
        if text:
            features["prompt_length"] = prompt_tokens(self._tokenizer, text, limit)
        return features

    def tokenize(
        self, texts: Sequence[Pair], processing_kwargs: Processing | None = None
    ) -> Features:
        """Old name of `preprocess`, without a prompt."""
        return self.preprocess(texts, processing_kwargs=processing_kwargs)
