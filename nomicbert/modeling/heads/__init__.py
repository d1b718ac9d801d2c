"""Encoders with a head: masked LM, classification of texts or tokens, question answering.

Heads run on packed hidden states, so padding costs nothing after the encoder either.
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
