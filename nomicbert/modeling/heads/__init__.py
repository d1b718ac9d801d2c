"""An encoder with a head: masked words, classes of texts or of tokens, answers to questions.

Heads see packed hidden states, so that padding costs nothing behind the encoder either.
Source: Devlin et al. 2018, arXiv:1810.04805, sections 3.1 and 4.
"""

from nomicbert.modeling.heads.classification import (
    NomicBertForSequenceClassification,
    NomicBertForTokenClassification,
)
from nomicbert.modeling.heads.masked_lm import NomicBertForMaskedLM, NomicBertForPreTraining
from nomicbert.modeling.heads.questions import NomicBertForQuestionAnswering

__all__ = [
    "NomicBertForMaskedLM",
    "NomicBertForPreTraining",
    "NomicBertForQuestionAnswering",
    "NomicBertForSequenceClassification",
    "NomicBertForTokenClassification",
]
