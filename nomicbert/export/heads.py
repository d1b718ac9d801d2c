"""The heads as nodes: hidden states -> logits in float32.

Source: as in `modeling.heads`.
"""

from nomicbert.errors import ExportError
from nomicbert.export.activations import activation
from nomicbert.export.graph import Graph
from nomicbert.export.layers import WORDS, layer_norm, linear, matmul
from nomicbert.export.vectors import check_pooling, first_token, or_zeros, text_vectors
from nomicbert.modeling.heads import (
    NomicBertForMaskedLM,
    NomicBertForQuestionAnswering,
    NomicBertForSequenceClassification,
    NomicBertForTokenClassification,
)
from nomicbert.modeling.heads.head import Head
from nomicbert.vectors.scores import ModularReranker

# Name of an output -> the value, and its shape.
Outputs = dict[str, tuple[str, tuple[str | int, ...]]]


def logits(graph: Graph, head: Head, hidden: str, mask: str) -> Outputs:
    """Add the nodes of a head.

    Args:
        graph: to add nodes to.
        head: one of this package.
        hidden: last hidden state (B, S, H) in the graph's precision.
        mask: attention_mask as (B, S) float32.

    Returns: "logits" (B, labels) or (B, S, labels); of question answering "start_logits" and
        "end_logits" (B, S).
    Raises: ExportError: a head that is not known here.
    """
    labels = len(head.labels.names)
    if isinstance(head, ModularReranker):
        check_pooling(head.pooling)
        return {"logits": (text_vectors(graph, head.pooling, hidden, mask), ("batch", labels))}
    if isinstance(head, NomicBertForMaskedLM):
        words = graph.widen(_words(graph, head, hidden))
        return {"logits": (words, ("batch", "sequence", head.config.vocab_size))}
    states = graph.widen(hidden)
    with graph.in_float32():
        if isinstance(head, NomicBertForSequenceClassification):
            assert head.encoder.pooler is not None
            x = linear(graph, "pooler", head.encoder.pooler, first_token(graph, states, mask))
            x = linear(graph, "classifier", head.classifier, graph.add("Tanh", x))
            return {"logits": (or_zeros(graph, x, mask), ("batch", labels))}
        if isinstance(head, NomicBertForTokenClassification):
            x = linear(graph, "classifier", head.classifier, states)
            return {"logits": (x, ("batch", "sequence", labels))}
        if isinstance(head, NomicBertForQuestionAnswering):
            both = linear(graph, "qa_outputs", head.qa_outputs, states)
            parts = graph.add("Split", both, graph.ints(1, 1), outputs=2, axis=-1)
            start, end = (graph.add("Squeeze", part, graph.ints(2)) for part in parts)
            shape = ("batch", "sequence")
            return {"start_logits": (start, shape), "end_logits": (end, shape)}
    raise ExportError(f"{type(head).__name__} is not a head that can be exported")


def _words(graph: Graph, head: NomicBertForMaskedLM, hidden: str) -> str:
    """Logits of every word: (B, S, V)."""
    x = linear(graph, "transform", head.transform, hidden)
    x = activation(graph, head.activation, x)
    x = layer_norm(graph, "transform_norm", head.transform_norm, x)
    bias = head.decoder_bias
    if head.decoder is None and not graph.quantizes:
        # the word table is stored once; onnxruntime turns it when it opens the file
        x = graph.add("MatMul", x, graph.add("Transpose", WORDS, perm=(1, 0)))
        return x if bias is None else graph.add("Add", x, graph.weight("decoder.bias", bias))
    table = head.encoder.embeddings.word.weight if head.decoder is None else head.decoder
    return matmul(graph, "decoder", x, table, bias)
