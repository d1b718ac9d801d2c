"""llama-index: NomicEmbedding, on top of nomic; only ATLAS_API_PATH says where.

Its module also defines a class for local models and imports torch and sentence-transformers for
it. Stand-ins take their place here: NomicEmbedding uses neither.
"""

import os
import sys
from enum import Enum
from types import ModuleType


def run(record, url, model, texts):
    os.environ["ATLAS_API_PATH"] = url
    stand_in()
    from llama_index.embeddings.nomic import NomicEmbedding  # nomic reads HOME when imported

    few, many = texts["few"], texts["many"]
    # dimensionality is 768 by default, whatever the model has
    whole = NomicEmbedding(model_name=model, api_key="nk-test", dimensionality=None)
    record.vectors("batch", whole.get_text_embedding_batch(many))
    record.vectors("query", [whole.get_query_embedding(few[0])])
    tasks = {"query_task_type": "classification", "document_task_type": "clustering"}
    short = NomicEmbedding(model_name=model, dimensionality=64, **tasks)
    record.vectors("classification 64", [short.get_query_embedding(few[0])])
    record.vectors("clustering 64", short.get_text_embedding_batch(few))


def stand_in():
    from llama_index.core.embeddings import BaseEmbedding

    class Pooling(str, Enum):
        CLS = "cls"
        MEAN = "mean"

    module = "llama_index.embeddings.huggingface"
    for name, contents in {
        "torch": {},
        module: {"HuggingFaceEmbedding": BaseEmbedding},
        f"{module}.pooling": {"Pooling": Pooling},
    }.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(contents)
