"""What users write, which type checkers must take as it is: see test_types.py. It is never run."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import nomicbert
from nomicbert import (
    CrossEncoder,
    Embedder,
    NomicBert,
    NomicBertForSequenceClassification,
    embed,
    export,
)

embedder = Embedder.from_pretrained(
    "nomic-ai/nomic-embed-text-v1.5", device="cpu", dtype=torch.float32, revision="main"
)
texts = ["What is TSNE?", "Who is Laurens?"]

array: npt.NDArray[np.float32] = embedder.encode(texts, prompt_name="search_query")
single: npt.NDArray[np.float32] = embedder.encode("What is TSNE?", matryoshka_dim=256)
product: npt.NDArray[np.float32] = array @ single
tensor: Tensor = embedder.encode(texts, convert_to_tensor=True, truncate_dim=256)
rows: list[Tensor] = embedder.encode(texts, convert_to_numpy=False)
row: Tensor = embedder.encode("one text", convert_to_numpy=False)
tokens: list[Tensor] = embedder.encode(texts, output_value="token_embeddings")
token_rows: Tensor = embedder.encode("one text", output_value="token_embeddings")
old_name: npt.NDArray[np.float32] = embedder.encode(sentences=texts, batch_size=32)
by_position: npt.NDArray[np.float32] = embedder.encode(texts, 32)
by_name: npt.NDArray[np.float32] = embedder.encode(texts, "search_query", normalize_embeddings=True)
everything = embedder.encode(texts, output_value=None)
of_tokens: Tensor = everything[0]["token_embeddings"]
of_one: Tensor = embedder.encode("one text", output_value=None)["sentence_embedding"]
packed = embedder.encode(texts, precision="binary")
bits: tuple[int, ...] = packed.shape
queries: npt.NDArray[np.float32] = embedder.encode_query(texts, matryoshka_dim=512)
documents: Tensor = embedder.encode_document(texts, convert_to_tensor=True)
stream: Iterator[npt.NDArray[np.float32]] = embedder.encode_iter(iter(texts), prompt_name="query")
scores: Tensor = embedder.similarity(queries, documents)
pairs: Tensor = embedder.similarity_pairwise(queries, documents)
of_lists: Tensor = embedder.similarity(rows, [row.numpy() for row in rows])
embedder.truncate_dim, embedder.default_prompt_name = 256, "search_query"
embedder.prompts = {"query": "search_query: "}
embedder.max_seq_length, embedder.similarity_fn_name = 512, "dot"
width: int = embedder.get_embedding_dimension()
count: int = embedder.token_count("one text")
counts: list[int] = embedder.token_count(texts, prompt_name="search_query")
theirs = Embedder(
    model_name_or_path="some/model",
    prompts={"query": "find: "},
    truncate_dim=256,
    model_kwargs={"torch_dtype": torch.bfloat16},
    tokenizer_kwargs={"model_max_length": 128},
)
ids_of_texts: Tensor = theirs.half().preprocess(texts, prompt="find: ")["input_ids"]
with theirs.truncate_embeddings(64), theirs.start_multi_process_pool(["cpu"]) as pool:
    theirs.encode(texts, pool=pool, chunk_size=8)
with_gradients: Tensor = embedder.embedding_model.encode_ids([[101, 102]])


def ask(as_tensor: bool) -> None:
    """A value that is only known at run time."""
    found = embedder.encode(texts, convert_to_tensor=as_tensor)
    if isinstance(found, Tensor):
        found.sum().item()


model = NomicBert.from_pretrained("nomic-ai/nomic-embed-text-v1.5", rotary_scaling_factor=2)
ids = torch.tensor([[101, 102]])
hidden: Tensor = model(ids, torch.ones_like(ids)).last_hidden_state
first: Tensor = model(input_ids=ids, output_hidden_states=True)[0]
encoded = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
from_tokenizer: Tensor = model(**encoded).last_hidden_state
plain: tuple[Tensor | tuple[Tensor, ...], ...] = model(ids, return_dict=False)
vectors_of_ids: torch.export.ExportedProgram = export.program(embedder, matryoshka_dim=256)
states_of_ids: torch.export.ExportedProgram = export.program(model, token_type_ids=True)

head = NomicBertForSequenceClassification.from_pretrained("my/classifier", num_labels=2)
loss: Tensor | None = head(ids, labels=torch.tensor([1])).loss

reranker = CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2", num_labels=1, device="cpu")
relevance: npt.NDArray[np.float32] = reranker.predict([("Who?", "Harper Lee did.")])
relevance_tensor: Tensor = reranker.predict([("Who?", "Lee did.")], convert_to_tensor=True)
reranker.activation_fn, reranker.max_seq_length = torch.nn.Tanh(), 128
prompted: npt.NDArray[np.float32] = reranker.predict([("Who?", "Lee did.")], prompt_name="find")
ranked = reranker.rank("Who wrote it?", texts, top_k=1, return_documents=True, batch_size=8)
place: int = ranked[0]["corpus_id"]
score: float = ranked[0]["score"]
scores_by_position = reranker.predict([("Who?", "Lee did.")], 8)
scores_by_old_name = reranker.predict(sentences=[("Who?", "Lee did.")], num_workers=2)
best_two = reranker.rank("Who wrote it?", texts, 2, True, convert_to_tensor=True)
with reranker.start_multi_process_pool(["cpu"]) as pair_processes:
    pooled: npt.NDArray[np.float32] = reranker.predict(
        [("Who?", "Lee did.")], pool=pair_processes, chunk_size=100, max_length=64
    )
reranker = CrossEncoder(
    model_name_or_path="some/model",
    activation_fn="torch.nn.Tanh",
    prompts={"find": "find: "},
    model_kwargs={"torch_dtype": "float32"},
    config_kwargs={"classifier_dropout": 0.1},
)
reranker.bfloat16().eval().save("some/folder", create_model_card=False)

task: str = "search_query"  # as in scripts that were written for nomic's client
answer = embed.text(texts, model="nomic-embed-text-v1.5", task_type=task, dimensionality=256)
hosted: list[list[float]] = answer["embeddings"]
used: int = answer["usage"]["total_tokens"]
told: str = answer["model"] + answer["inference_mode"]
again: embed.TextEmbeddings = nomicbert.embed.text(
    texts=texts, long_text_mode="mean", inference_mode="local", device="gpu", n_ctx=2048
)
embed.free_embedding_model()

try:
    embedder.encode(texts, truncate="error")
except nomicbert.TextError as error:
    index: int = error.index
