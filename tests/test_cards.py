"""The snippets of nomic-embed-text-v1.5's card, with only the import and the class changed.

Each snippet runs twice: on this package, and on the libraries that the card names. Those also load
the weights from a local folder, without the keywords that their newest versions refuse.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from nomicbert import NomicBert, embed
from tests.support.checkpoints import build_checkpoint
from tests.support.vocabularies import WORDS

SENTENCE_TRANSFORMERS = """
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer

matryoshka_dim = 512

model = SentenceTransformer("nomic-ai/nomic-embed-text-v1.5", trust_remote_code=True)
sentences = ['search_query: What is TSNE?', 'search_query: Who is Laurens van der Maaten?']
embeddings = model.encode(sentences, convert_to_tensor=True)
embeddings = F.layer_norm(embeddings, normalized_shape=(embeddings.shape[1],))
embeddings = embeddings[:, :matryoshka_dim]
embeddings = F.normalize(embeddings, p=2, dim=1)
print(embeddings)
"""
TRANSFORMERS = """
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, AutoModel

def mean_pooling(model_output, attention_mask):
    token_embeddings = model_output[0]
    input_mask_expanded = attention_mask.unsqueeze(-1).expand(token_embeddings.size()).float()
    return torch.sum(token_embeddings * input_mask_expanded, 1) / torch.clamp(input_mask_expanded.sum(1), min=1e-9)

sentences = ['search_query: What is TSNE?', 'search_query: Who is Laurens van der Maaten?']

tokenizer = AutoTokenizer.from_pretrained('bert-base-uncased')
model = AutoModel.from_pretrained('nomic-ai/nomic-embed-text-v1.5', trust_remote_code=True, safe_serialization=True)
model.eval()

encoded_input = tokenizer(sentences, padding=True, truncation=True, return_tensors='pt')

matryoshka_dim = 512

with torch.no_grad():
    model_output = model(**encoded_input)

embeddings = mean_pooling(model_output, encoded_input['attention_mask'])
embeddings = F.layer_norm(embeddings, normalized_shape=(embeddings.shape[1],))
embeddings = embeddings[:, :matryoshka_dim]
embeddings = F.normalize(embeddings, p=2, dim=1)
print(embeddings)
"""  # noqa: E501
HOSTED = """
from nomic import embed

output = embed.text(
    texts=['Nomic Embedding API', '#keepAIOpen'],
    model='nomic-embed-text-v1.5',
    task_type='search_document',
    dimensionality=256,
)

print(output)
"""
LONG_CONTEXT = (
    ("from_pretrained('bert-base-uncased')", "from_pretrained('bert-base-uncased', model_max_length=8192)"),  # noqa: E501
    ("safe_serialization=True)", "rotary_scaling_factor=2)"),
)  # fmt: skip
SENTENCES = "['search_query: What is TSNE?', 'search_query: Who is Laurens van der Maaten?']"
OURS = (
    ("from sentence_transformers import SentenceTransformer", "from nomicbert import Embedder"),
    ("SentenceTransformer(", "Embedder("),
    (
        "from transformers import AutoTokenizer, AutoModel",
        "from transformers import AutoTokenizer; from nomicbert import NomicBert",
    ),
    ("AutoModel.", "NomicBert."),
)
# remote code needs the network, and transformers 5 refuses the other two
THEIRS = (
    (", trust_remote_code=True", ""),
    (", safe_serialization=True", ""),
    (", rotary_scaling_factor=2", ", config=scaled_config"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1.5's layout, width and head size, with two layers and a small vocabulary."""
    return build_checkpoint(
        tmp_path_factory.mktemp("v1.5"),
        "nomic-v1.5",
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=256,
        num_hidden_layers=2,
    )


def _run(snippet: str, changes: tuple[tuple[str, str], ...], folder: Path, **names: Any) -> Tensor:
    for name in ("nomic-ai/nomic-embed-text-v1.5", "bert-base-uncased"):
        snippet = snippet.replace(name, str(folder))
    for before, after in changes:
        snippet = snippet.replace(before, after)
    exec(compile(snippet, "card", "exec"), names)
    return names["embeddings"]


def _compare(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape == (2, 512)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (ours[0] - ours[1]).abs().max() > 1e-3


def test_sentence_transformers_snippet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = _run(SENTENCE_TRANSFORMERS, OURS, folder)
    assert capsys.readouterr().out.startswith("tensor([[")
    _compare(ours, _run(SENTENCE_TRANSFORMERS, THEIRS, folder))


def test_matryoshka_dim_is_the_snippet_in_one_call(folder: Path) -> None:
    in_one = SENTENCE_TRANSFORMERS.replace(
        "convert_to_tensor=True", "convert_to_tensor=True, matryoshka_dim=512"
    )
    in_one = "\n".join(line for line in in_one.splitlines() if "embeddings = F" not in line)
    _compare(_run(in_one, OURS, folder), _run(SENTENCE_TRANSFORMERS, THEIRS, folder))


def test_hosted_snippet(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The service's answer is not known here: sentence-transformers computes what it documents."""
    (tmp_path / "nomic-embed-text-v1.5").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(HOSTED.replace("from nomic ", "from nomicbert "), "card", "exec"), names)
    embed.free_embedding_model()
    output = names["output"]
    assert ast.literal_eval(capsys.readouterr().out) == output
    assert set(output) == {"embeddings", "usage", "model", "inference_mode"}
    assert output["model"] == "nomic-embed-text-v1.5"
    texts = "['search_document: Nomic Embedding API', 'search_document: #keepAIOpen']"
    snippet = SENTENCE_TRANSFORMERS.replace(SENTENCES, texts).replace("= 512", "= 256")
    assert texts in snippet
    theirs = _run(snippet, THEIRS, folder)
    assert theirs.shape == (2, 256)
    torch.testing.assert_close(torch.tensor(output["embeddings"]), theirs, rtol=0, atol=1e-6)


def test_transformers_snippet(folder: Path) -> None:
    _compare(_run(TRANSFORMERS, OURS, folder), _run(TRANSFORMERS, THEIRS, folder))


def test_long_context_snippet(folder: Path) -> None:
    snippet = TRANSFORMERS
    for before, after in LONG_CONTEXT:
        assert before in snippet
        snippet = snippet.replace(before, after)
    longer = [" ".join(WORDS[i % 37] for i in range(n)) for n in (2300, 9)]
    snippet = snippet.replace(SENTENCES, repr(longer))
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}
    ours = _run(snippet, OURS, folder)
    _compare(ours, _run(snippet, THEIRS, folder, scaled_config=config))
    # without the factor the long text's vector differs
    plain = _run(snippet.replace(", rotary_scaling_factor=2", ""), OURS, folder)
    assert (ours[0] - plain[0]).abs().max() > 1e-4


def test_usage_as_in_transformers(folder: Path) -> None:
    model = NomicBert.from_pretrained(folder, torch_dtype=torch.float32, device_map="cpu")
    theirs = AutoModel.from_pretrained(folder)
    assert not model.training
    assert model.eval() is model
    assert model.to("cpu") is model
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert model.config.hidden_size == theirs.config.hidden_size == 768
    words = model.get_input_embeddings()
    assert isinstance(words, torch.nn.Embedding)
    assert torch.equal(words.weight, theirs.get_input_embeddings().weight)


def test_half_precision(folder: Path) -> None:
    ids = torch.tensor([[101, 120, 130, 140, 102]])
    model = NomicBert.from_pretrained(folder)
    with torch.no_grad():
        exact = model(ids)[0]
        assert model.half() is model
        assert model.dtype == torch.float16
        half = model(ids)
    assert half.last_hidden_state is half[0]
    assert half[0].dtype == torch.float16
    torch.testing.assert_close(half[0].float(), exact, rtol=0, atol=0.03)
    assert not torch.equal(half[0].float(), exact)
    with torch.no_grad():
        torch.testing.assert_close(model.to(torch.float32)(ids)[0], exact, rtol=0, atol=0.03)
