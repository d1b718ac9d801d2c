"""Masked LM head: transform (dense, activation, LayerNorm) -> decoder -> logits.

Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1.
"""

import torch
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.loading.tensor_names import is_untied
from nomicbert.modeling.activations import activate
from nomicbert.modeling.heads.labelled import LabelledHead
from nomicbert.modeling.heads.stored import is_tied, lacks_biases, next_sentence
from nomicbert.modeling.packing import PackedBatch
from nomicbert.modeling.vocabulary import resized
from nomicbert_kernels import Backend


class NomicBertForMaskedLM(LabelledHead):
    """Logits of every word for every token; labels are the ids of the original words.

    Attributes:
        decoder: (vocab_size, hidden_size), or None if it is tied to the word embedding table.
        decoder_bias: (vocab_size,), or None as in the original code of NomicBERT.
        kept: pooler and next-sentence head of a BertForPreTraining checkpoint, under their names on
            the hub. They are neither computed nor trained, and are saved again as they were.
    """

    task = "MaskedLM"
    decoder: nn.Parameter | None
    decoder_bias: nn.Parameter | None

    def __init__(
        self,
        config: EncoderConfig,
        *,
        backend: Backend = "auto",
        bias: bool = True,
        tied: bool = True,
    ) -> None:
        """Build with random weights.

        Args:
            config: of the encoder.
            backend: "auto", "reference", "torch", "int8", "triton", "fp8" or "invariant".
            bias: whether the dense layer and the decoder have biases.
            tied: whether the decoder is the word embedding table.
        """
        super().__init__(config, backend=backend)
        width, words = config.hidden_size, config.vocab_size
        self.transform = nn.Linear(width, width, bias=bias)
        self.transform_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.register_parameter(
            "decoder", None if tied else nn.Parameter(torch.empty(words, width))
        )
        self.register_parameter("decoder_bias", nn.Parameter(torch.empty(words)) if bias else None)
        self.kept: dict[str, Tensor] = {}
        self._say_tied()
        self._initialise()

    @classmethod
    def _empty(
        cls, config: EncoderConfig, files: TensorFiles, count: int | None, backend: Backend
    ) -> "NomicBertForMaskedLM":
        if count is not None:
            raise ValueError("num_labels is for classes: here every word of the vocabulary is one")
        bias, tied = not lacks_biases(config, files), is_tied(config, files)
        model = cls(config, backend=backend, bias=bias, tied=tied)
        model.kept = next_sentence(config, files)
        return model

    def settings(self) -> dict[str, object]:
        """Keys of config.json for this head."""
        settings = {**super().settings(), "tie_word_embeddings": self.decoder is None}
        if self.kept:
            settings["architectures"] = ["BertForPreTraining"]
        return {**settings, "activation_function": "gelu_new"} if self._is_tanh() else settings

    def _further_tensors(self) -> dict[str, Tensor]:
        return self.kept

    def get_output_embeddings(self) -> nn.Linear:
        """The decoder as a layer, (vocab_size, hidden_size), that shares the parameters."""
        table = self.encoder.embeddings.word.weight if self.decoder is None else self.decoder
        layer = nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
        layer.weight = table
        layer.register_parameter("bias", self.decoder_bias)
        return layer

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Compute with this decoder; one with the words' own table is tied to it.

        The configuration's tie_word_embeddings says so too: `tie_weights` keeps this decoder.

        Raises: TypeError: not an nn.Linear. ValueError: another size, or with a bias and without.
        """
        if not isinstance(value, nn.Linear) or not isinstance(value.weight, nn.Parameter):
            raise TypeError(f"the decoder must be an nn.Linear, not a {type(value).__name__}")
        words = self.encoder.embeddings.word.weight
        if value.weight.shape != words.shape or (value.bias is None) != (self.decoder_bias is None):
            has = "without" if self.decoder_bias is None else "with"
            raise ValueError(
                f"the decoder must be {tuple(words.shape)} {has} a bias, not "
                f"{tuple(value.weight.shape)} {'without' if value.bias is None else 'with'} one; "
                "resize_token_embeddings changes the vocabulary"
            )
        self.register_parameter("decoder", None if value.weight is words else value.weight)
        self.register_parameter("decoder_bias", value.bias)
        self._say_tied()

    def _say_tied(self) -> None:
        self.config.write(tie_word_embeddings=self.decoder is None)

    def tie_weights(self) -> None:
        """Let the decoder be the words' own table, unless the configuration says that it is not.

        Of a decoder that was loaded or set apart it says so, whatever config.json said.
        """
        if not is_untied(self.config):
            self.decoder = None

    @property
    def activation(self) -> str:
        """The activation of the encoder's MLP; of a gated one that of the gate."""
        if self._is_tanh():
            return "gelu_pytorch_tanh"
        return "silu" if self.config.hidden_act == "swiglu" else self.config.hidden_act

    def _is_tanh(self) -> bool:
        """Whether to use tanh GELU: NomicBERT's own code does for "gelu_new", in this head only."""
        config = self.config
        plain = config.model_type == "nomic_bert" and config.hidden_act == "gelu"
        return plain and config.source.get("activation_function") == "gelu_new"

    def _follow(self, count: int, mean_resizing: bool) -> None:
        """Give decoder and bias a row for each word; new rows are drawn like those of the table.

        New words get the mean bias, or 0 if the decoder is tied or without `mean_resizing`.
        """
        std = self.config.initializer_range
        by_mean = mean_resizing and self.decoder is not None
        for name, draw in (("decoder", (std, mean_resizing)), ("decoder_bias", (0.0, by_mean))):
            old = getattr(self, name)
            if old is not None and len(old) != count:
                setattr(self, name, resized(old, count, *draw))

    def packed_logits(self, batch: PackedBatch, states: list[Tensor] | None = None) -> Tensor:
        """(T, vocab_size) of packed texts."""
        encoder = self.encoder
        x = encoder.linear(encoder.encode_packed(batch, states=states), self.transform)
        x = encoder.layer_norm(activate(x, self.activation), self.transform_norm)
        table = encoder.embeddings.word.weight if self.decoder is None else self.decoder
        return encoder.matmul(x, table, self.decoder_bias, (id(self), "decoder"))


# The same model under its name in NomicBERT's original code.
NomicBertForPreTraining = NomicBertForMaskedLM
