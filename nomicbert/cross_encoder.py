"""CrossEncoder: pairs of texts in, scores out. The facade over a head that classifies texts.

Arguments that sentence-transformers has too carry its names and its meaning.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from nomicbert.arguments import as_place, refuse_unknown
from nomicbert.loading import hub
from nomicbert.loading.folder import read_folder
from nomicbert.loading.json_settings import naming
from nomicbert.loading.purpose import is_embedder, is_modular, refuse_unless_reranker
from nomicbert.loading.reranker_keywords import NAMES, wanted_reranker
from nomicbert.loading.target import check_keywords
from nomicbert.modeling.heads import NomicBertForSequenceClassification
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.activation import (
    Activation,
    check_activation,
    function_of,
    stated_activation,
)
from nomicbert.runtime.encode_types import Devices
from nomicbert.runtime.features import PAIR_CUTS, Processing, call_length
from nomicbert.runtime.inputs import as_documents, as_pairs
from nomicbert.runtime.pairs import Pairs
from nomicbert.runtime.pool import WorkerPool
from nomicbert.runtime.predict_types import (
    Float32,
    PredictKeywords,
    RankedDocument,
    as_predict,
    as_rank,
)
from nomicbert.runtime.reranker_calls import takes_constructor_positions
from nomicbert.runtime.reranker_names import RerankerNames
from nomicbert.runtime.stream import Options
from nomicbert.runtime.workers import open_stream
from nomicbert.text.max_length import stated_limit, within_positions
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import Pair, Tokenizer
from nomicbert.vectors.scores import load_modular

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.loading.reranker_keywords import (
        RerankerConstructorKeywords,
        RerankerFromPretrainedKeywords,
    )


class CrossEncoder(RerankerNames):
    """Scores pairs of texts with one checkpoint, as sentence-transformers' CrossEncoder does.

    Attributes:
        model: encoder and head, or encoder and modules after it (`pooling`).
        activation_fn: logits -> scores: the checkpoint's own, else sigmoid for one label and
            identity for several. May be set, like the next ones, and is saved.
        tokenizer, prompts, default_prompt_name, max_seq_length: the checkpoint's.
    """

    @takes_constructor_positions
    def __init__(
        self,
        path_or_repo_id: str | os.PathLike[str] | None = None,
        *,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Activation | str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **keywords: "Unpack[RerankerConstructorKeywords]",
    ) -> None:
        """Load a checkpoint for sequence classification.

        Args:
            path_or_repo_id: a local folder or a repository of the hub. num_labels, max_length,
                activation_fn and device may follow by position.
            num_labels: columns of the logits; adds a new head to a checkpoint without one.
            max_length: maximum tokens per pair, in place of the checkpoint's.
            activation_fn: logits -> scores in place of the checkpoint's, or its name, such as
                "torch.nn.Tanh".
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads are kept, in place of Hugging Face's default.
            token: for private repositories.
            local_files_only: never reach for the network.
            **keywords: of `NomicBertForSequenceClassification.from_pretrained`: dtype, device,
                backend, ..., but config; and those of sentence-transformers: model_name_or_path,
                prompts, model_kwargs, config_kwargs, processor_kwargs, ... (`RerankerKeywords`).

        Raises: NomicBertError: checkpoint missing, damaged or unsupported; backend that cannot run.
            TypeError, ValueError: an argument that is not known, cannot be honoured, or contradicts
                the checkpoint; the message names it.
        """
        location = {"path_or_repo_id": path_or_repo_id, "revision": revision, "token": token}
        location |= {"cache_dir": cache_dir, "local_files_only": local_files_only}
        wanted = wanted_reranker(location, num_labels, max_length, activation_fn, keywords)
        loading, head = wanted.common.model, NomicBertForSequenceClassification
        loaders = (head.from_pretrained, NomicBert.from_pretrained)
        check_keywords(loading, type(self), *loaders, more=NAMES)
        chosen = None if wanted.activation is None else check_activation(wanted.activation)
        folder = hub.resolve(**wanted.common.location)
        checkpoint = read_folder(folder, loading.pop("rotary_scaling_factor", None))
        checkpoint = wanted.changed(checkpoint)
        refuse_unless_reranker(checkpoint, wanted.num_labels)
        # prompts and activation of an embedding model are not those of its new head
        old = is_embedder(checkpoint)
        prompts = Prompts(implied=()) if old else Prompts.of_reranker(checkpoint.prompts)
        self._prompts = prompts.updated(wanted.common.prompts, wanted.common.default_prompt_name)
        load = head.from_pretrained if old or not is_modular(checkpoint) else load_modular
        self.model = load(checkpoint, num_labels=wanted.num_labels, **loading)
        config = checkpoint.config
        self._tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, config.vocab_size)
        self._max_seq_length = checkpoint.limit.tokens
        if max_length is not None:
            self.max_seq_length = max_length
        elif wanted.common.tokenizer_limit is not None:
            self.max_seq_length = within_positions(wanted.common.tokenizer_limit, config)
        else:
            stated_limit(checkpoint, self._tokenizer.rust.num_special_tokens_to_add(True) + 1)
        with naming(folder):
            named = None if old else checkpoint.activation
            self._activation = chosen or stated_activation(named, self.num_labels)
        for name, value in wanted.common.settings.items():
            setattr(self, name, value)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | os.PathLike[str] | None = None,
        **keywords: "Unpack[RerankerFromPretrainedKeywords]",
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
        pool: WorkerPool | None = None,
        chunk_size: int | None = None,
        max_length: int | None = None,
        processing_kwargs: Processing | None = None,
    ) -> np.float32 | Float32 | Tensor | list[Tensor]:
        """Score pairs, in eval mode and without gradients.

        >>> reranker.predict([("Who wrote it?", "Harper Lee did."), ("Who?", "In 1960.")]).shape
        (2,)

        Args:
            inputs: one pair of texts or any number of pairs. Arguments may follow by position in
                the order of sentence-transformers, and have its old names: `reranker_calls`.
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
            pool: processes of `start_multi_process_pool`, in place of such a list.
            chunk_size: pairs that one of several processes gets at a time.
            max_length: maximum tokens per pair, in place of `max_seq_length`.
            processing_kwargs: the same as {"text": {"max_length": ...}}.

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
            chunk_size=chunk_size,
        )
        limit = self._limit(call_length(max_length, processing_kwargs, PAIR_CUTS))
        task = Pairs(self.model, self.tokenizer, chosen, limit)
        windows = open_stream(task, options, devices, pool).run(iter(pairs))
        rows = [cast("Tensor", window.rows) for window in windows]
        # a copy: what inference_mode makes, an activation may not change
        logits = torch.cat(rows or [torch.zeros(0, self.num_labels)])
        with torch.no_grad():
            # it may have parameters, which are on the model's device
            scores = activation(logits.to(self.device))
        scores = scores.squeeze(1) if self.num_labels == 1 and scores.dim() > 1 else scores
        if apply_softmax and scores.dim() > 1:
            scores = scores.softmax(1)
        scores = scores.cpu() if devices or pool else scores
        if convert_to_tensor:
            return scores[0] if lone else scores
        if convert_to_numpy:
            array: Float32 = scores.cpu().numpy()
            return array[0] if lone else array
        return scores[0] if lone else list(scores)

    @as_rank
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
        refuse_unknown(sorted(keywords.keys() - known), CrossEncoder.rank, more=known)
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
