"""Texts -> token ids, packed for a model of this package or padded as for transformers.

Where in the flow: a base class of `Embedder`; none of this is on the way of `encode`.
"""

from collections.abc import Iterable, Sequence

from nomicbert.modeling.packing import PackedBatch, pack
from nomicbert.runtime import encode_types
from nomicbert.runtime.features import Features, Processing, padded, stated_length
from nomicbert.runtime.inputs import as_texts
from nomicbert.runtime.module_names import ModuleNames
from nomicbert.runtime.prompt_tokens import prompt_tokens
from nomicbert.runtime.settings import EmbedderSettings
from nomicbert.user_warnings import warn_of_cuts


class TokenIds(ModuleNames, EmbedderSettings):
    """What the tokenizer of an `Embedder` makes of texts."""

    @encode_types.as_token_count
    def token_count(
        self, inputs: str | Iterable[str], prompt_name: str | None = None
    ) -> int | list[int]:
        """Tokens of each text before truncation, prompt and special tokens included."""
        texts, lone = as_texts(inputs)
        prompt = self._prompts.choose(prompt_name, None)
        counts = self.tokenizer.count([prompt + text for text in texts])
        return counts[0] if lone else counts

    def batch(self, inputs: str | Iterable[str], prompt_name: str | None = None) -> PackedBatch:
        """Tokenise and pack texts for `embedding_model`, whose call keeps gradients."""
        texts, _ = as_texts(inputs)
        prompt, limit = self._prompts.choose(prompt_name, None), self._limit(None)
        ids, cut = self.tokenizer.encode([prompt + text for text in texts], limit)
        warn_of_cuts(len(cut), len(ids), "texts", limit)
        return pack(ids, self.device, prompt_tokens(self.tokenizer, prompt, limit))

    def preprocess(
        self,
        inputs: Sequence[str],
        prompt: str | None = None,
        processing_kwargs: Processing | None = None,
    ) -> Features:
        """Token ids of a list of texts, padded to the longest: a dictionary of tensors.

        Args:
            inputs: B texts.
            prompt: text to put before each; None for none, and not the default one.
            processing_kwargs: {"text": {"max_length": ...}} in place of `max_seq_length`.

        Returns: input_ids, token_type_ids and attention_mask, each (B, S) int64; see `Features`.
        Raises: TypeError, ValueError: not a list of texts, or an entry that cannot be honoured.
        Warns: TruncationWarning: texts were cut.
        """
        texts, lone = as_texts(inputs)
        if lone:
            raise TypeError("inputs must be a list of str, not one str: give [text]")
        limit = self._limit(stated_length(processing_kwargs))
        text = self._prompts.choose(None, prompt or "")
        ids, cut = self._tokenizer.encode([text + one for one in texts], limit)
        warn_of_cuts(len(cut), len(ids), "texts", limit)
        return self._features(ids, text, limit)

    def tokenize(
        self, texts: Sequence[str], processing_kwargs: Processing | None = None
    ) -> Features:
        """Old name of `preprocess`, without a prompt."""
        return self.preprocess(texts, processing_kwargs=processing_kwargs)

    def _features(self, ids: Sequence[Sequence[int]], prompt: str, limit: int) -> Features:
        pad = self._encoder_config.pad_token_id
        features = padded(ids, pad)
        if prompt:
            features["prompt_length"] = prompt_tokens(self._tokenizer, prompt, limit)
        return features
