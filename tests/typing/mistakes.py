"""Mistakes that a type checker must see, one on each line that ends in MISTAKE. It is never run."""

from torch import Tensor

from nomicbert import CrossEncoder, Embedder, NomicBert, embed

embedder = Embedder("some/model")
Embedder.from_pretrained("some/model", devise="cpu")  # MISTAKE
embedder.encode(["a text"], promt_name="search_query")  # MISTAKE
vectors: Tensor = embedder.encode(["a text"])  # MISTAKE
embedder.encode_query(["a text"], precision="int4")  # MISTAKE
NomicBert.from_pretrained("some/model", dtyp="auto")  # MISTAKE
reranker = CrossEncoder("some/model")
reranker.predict(["no pair"])  # MISTAKE
reranker.rank("a query", ["a text"], top=3)  # MISTAKE
reranker.predict([("a", "b")], promt="find: ")  # MISTAKE
reranker.predict([("a", "b")], chunk_size="8")  # MISTAKE
CrossEncoder("some/model", truncate_dim=8)  # MISTAKE
embedder.truncate_dim = "8"  # MISTAKE
embedder.max_length = 128  # MISTAKE
embedder.add_adapter("a/lora")  # MISTAKE
embedder.encode(["a text"], output_value="vectors")  # MISTAKE
Embedder("some/model", model_kwarg={})  # MISTAKE
for vector in embedder.encode_iter(["a text"], show_progres_bar=True):  # MISTAKE
    vector.sum()
embed.text("a lone text")  # MISTAKE
embed.text(["a text"], dimension=256)  # MISTAKE
embed.text(["a text"], dimensionality="256")  # MISTAKE
embed.text(["a text"])["embedings"]  # MISTAKE
embed.image(["picture.png"])  # MISTAKE
