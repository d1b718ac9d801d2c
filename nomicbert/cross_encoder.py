"""CrossEncoder: pairs of texts in, scores out. The facade over a head that classifies texts.

Arguments that sentence-transformers has too carry its names and its meaning.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from nomicbert.arguments import as_place, refuse_unknown
from nomicbert.loading import hub
from nomicbert.loading.folder import ACTIVATION_KEYS, read_folder
from nomicbert.loading.json_settings import naming
from nomicbert.loading.purpose import is_embedder, is_modular, refuse_unless_reranker
from nomicbert.loading.target import check_keywords
from nomicbert.modeling.heads import NomicBertForSequenceClassification
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.activation import (
    Activation,
    activation_name,
    check_activation,
    function_of,
    stated_activation,
)
from nomicbert.runtime.encode_types import Devices
from nomicbert.runtime.inputs import as_documents, as_pairs
from nomicbert.runtime.pairs import Pairs
from nomicbert.runtime.predict_types import Float32, PredictKeywords, RankedDocument, as_predict
from nomicbert.runtime.settings import CrossEncoderSettings
from nomicbert.runtime.stream import Options
from nomicbert.runtime.workers import open_stream
from nomicbert.text.max_length import check_limit, stated_limit
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import Pair, Tokenizer
from nomicbert.user_warnings import ConfigWarning, warn
from nomicbert.vectors.saving import save_reranker_settings
from nomicbert.vectors.scores import ModularReranker, load_modular

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.loading.pretrained import CrossEncoderKeywords, ModelKeywords


class CrossEncoder(CrossEncoderSettings):
    """Scores pairs of texts with one checkpoint, as a reranker does.

    Attributes:
        model: encoder and head, or encoder and modules after it (`pooling`).
        activation_fn: logits -> scores: the checkpoint's own, else sigmoid for one label and
            identity for several. May be set, like the next ones, and is saved.
        tokenizer, prompts, default_prompt_name, max_seq_length: the checkpoint's.
    """

    def __init__(
        self,
        path_or_repo_id: str | os.PathLike[str],
        *,
        num_labels: int | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **model_keywords: "Unpack[ModelKeywords]",
    ) -> None:
        """Load a checkpoint for sequence classification.

        Args:
            path_or_repo_id: a local folder or a repository of the hub.
            num_labels: columns of the logits; adds a new head to a checkpoint without one.
            max_length: maximum tokens per pair, in place of the checkpoint's.
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads are kept, in place of Hugging Face's default.
            token: for private repositories.
            local_files_only: never reach for the network.
            **model_keywords: dtype, device, backend and the others of
                `NomicBertForSequenceClassification.from_pretrained`.

        Raises: NomicBertError: checkpoint missing, damaged or unsupported; backend that cannot run.
            ValueError, TypeError: invalid max_length.
        """
        head = NomicBertForSequenceClassification
        check_keywords(model_keywords, type(self), head.from_pretrained, NomicBert.from_pretrained)
        folder = hub.resolve(
            path_or_repo_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        checkpoint = read_folder(folder, model_keywords.pop("rotary_scaling_factor", None))
        refuse_unless_reranker(checkpoint, num_labels)
        # prompts and activation of an embedding model are not those of its new head
        old = is_embedder(checkpoint)
        self._prompts = Prompts(implied=()) if old else Prompts.of_reranker(checkpoint.prompts)
        load = head.from_pretrained if old or not is_modular(checkpoint) else load_modular
        self.model = load(checkpoint, num_labels=num_labels, **model_keywords)
        config = checkpoint.config
        self._tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, config.vocab_size)
        self._max_seq_length = checkpoint.limit.tokens
        if max_length is not None:
            self.max_seq_length = max_length
        else:
            stated_limit(checkpoint, self._tokenizer.rust.num_special_tokens_to_add(True) + 1)
        stated = None if old else checkpoint.activation
        with naming(folder):
            self._activation = stated_activation(stated, self.num_labels)

    @classmethod
    def from_pretrained(
        cls, path_or_repo_id: str | os.PathLike[str], **keywords: "Unpack[CrossEncoderKeywords]"
    ) -> "CrossEncoder":
        """The constructor, under the name that it has in transformers."""
        return cls(path_or_repo_id, **keywords)

    def __repr__(self) -> str:
        """What was loaded, in one line."""
        model, config = self.model, self.model.config
        return (
            f"CrossEncoder({config.model_type}, {config.num_hidden_layers} layers, "
            f"labels {self.num_labels}, max_seq_length {self.max_seq_length}, "
            f"{model.dtype}, {model.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    @property
    def num_labels(self) -> int:
        """Columns of the logits."""
        return len(self.model.labels.names)

    @as_predict
    def predict(
        self,
        inputs: Pair | Iterable[Pair],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Devices = None,
    ) -> np.float32 | Float32 | Tensor | list[Tensor]:
        """Score pairs, in eval mode and without gradients.

        >>> reranker.predict([("Who wrote it?", "Harper Lee did."), ("Who?", "In 1960.")]).shape
        (2,)

        Args:
            inputs: one pair of texts or any number of pairs.
            prompt_name: the checkpoint's prompt to put before the first text of every pair; by
                default `default_prompt_name`.
            prompt: your own text to put there; it wins over prompt_name, with a warning.
            batch_size: maximum pairs per batch; batches are cut by tokens.
            batch_tokens: maximum tokens per batch; by default it depends on the device.
            show_progress_bar: by default shown on a terminal when the work takes long.
            activation_fn: in place of the checkpoint's.
            apply_softmax: make the scores of several labels sum to 1.
            convert_to_numpy: False returns a list of tensors.
            convert_to_tensor: return one tensor on the model's device; on the CPU for several.
            device: move the model there first; or a list of devices, as in `Embedder.encode`.

        Returns: (n,) fp32 for one label, (n, num_labels) for several; without n for a single pair.
            Pairs that are too long lose tokens of the longer text, with one warning.
        Raises: TypeError: an input is not a pair of str, or an invalid argument. TextError: invalid
            Unicode. ValueError: unknown prompt_name, or a size that is too small.
        """
        given = self.activation_fn if activation_fn is None else activation_fn
        activation = function_of(check_activation(given))
        chosen = self._prompts.choose(prompt_name, prompt)
        pairs, lone = as_pairs(inputs)  # all, before the first is scored
        place, devices = as_place(device)
        if place is not None and place != self.device:
            self.model.to(place)
        self.model.eval()
        options = Options(
            batch_tokens=batch_tokens,
            batch_size=batch_size,
            to_host=False,
            show_progress_bar=show_progress_bar,
        )
        check_limit(self.max_seq_length, 1, self.model.config, "max_seq_length")
        task = Pairs(self.model, self.tokenizer, chosen, self.max_seq_length)
        windows = open_stream(task, options, devices).run(iter(pairs))
        rows = [cast("Tensor", window.rows) for window in windows]
        # a copy: what inference_mode makes, an activation may not change
        logits = torch.cat(rows or [torch.zeros(0, self.num_labels)])
        with torch.no_grad():
            # it may have parameters, which are on the model's device
            scores = activation(logits.to(self.device))
        scores = scores.squeeze(1) if self.num_labels == 1 and scores.dim() > 1 else scores
        if apply_softmax and scores.dim() > 1:
            scores = scores.softmax(1)
        scores = scores.cpu() if devices else scores
        if convert_to_tensor:
            return scores[0] if lone else scores
        if convert_to_numpy:
            array: Float32 = scores.cpu().numpy()
            return array[0] if lone else array
        return scores[0] if lone else list(scores)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        **keywords: "Unpack[PredictKeywords]",
    ) -> list[RankedDocument]:
        """Order documents by their score beside a query, the best first.

        Args:
            query: one text.
            documents: any number of texts.
            top_k: number of documents to return; None returns all.
            return_documents: add each document's text as "text".
            **keywords: those of `predict`, without convert_to_numpy and convert_to_tensor.

        Returns: per document its index in `documents` as "corpus_id", and its "score".
        Raises: ValueError: the checkpoint has several labels. TypeError: no texts. Errors of
            `predict`.
        """
        known = PredictKeywords.__annotations__.keys()
        refuse_unknown(sorted(keywords.keys() - known), type(self).rank, more=known)
        if self.num_labels != 1:
            raise ValueError(
                f"rank needs one score a pair, but this checkpoint gives {self.num_labels}: "
                "use predict"
            )
        texts = as_documents(query, documents)
        pairs = [(query, text) for text in texts]
        scores = self.predict(pairs, **keywords)
        order = np.argsort(-scores, kind="stable")[:top_k].tolist()
        rows: list[RankedDocument] = [{"corpus_id": i, "score": float(scores[i])} for i in order]
        for row in rows if return_documents else []:
            row["text"] = texts[row["corpus_id"]]
        return rows

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model, tokenizer and settings, for this class or sentence-transformers.

        A folder without a README.md gets a model card. An activation that torch.nn does not have is
        not saved, with a ConfigWarning.

        Raises: ValueError, TypeError: invalid prompts, before anything is written.
        """
        self._prompts.check()  # before anything is written
        stated = activation_name(self.activation_fn)
        if stated is None:
            warn(
                "activation_fn has no name in torch.nn and is not saved: set it again after "
                "loading",
                ConfigWarning,
            )
        config = self.model.config
        source = {key: v for key, v in config.source.items() if key not in ACTIVATION_KEYS}
        source |= {"sentence_transformers": {"activation_fn": stated}} if stated else {}
        self.model.encoder.config = replace(config, source=source)
        with self._carded(folder):
            self.model.save_files(folder)
            self.save_settings(folder)

    def save_settings(self, folder: str | os.PathLike[str]) -> None:
        """Write all that `save_pretrained` writes but the model, into a folder that exists."""
        stated = activation_name(self.activation_fn)
        modular = isinstance(self.model, ModularReranker)
        settings = (self._prompts, self.max_seq_length, stated, modular)
        save_reranker_settings(Path(folder), self.tokenizer, *settings)
