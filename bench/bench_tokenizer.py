"""Texts to token ids: ours, the tokenizers library below it, and transformers on the same files.

The texts are the standard library's docstrings, the tokenizer is that of all-MiniLM-L6-v2. All
three use the same Rust tokenizer; the benchmark compares the code around it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer

from nomicbert.cli.demo import packaged_weights
from nomicbert.loading.folder import read_folder
from nomicbert.text.corpus import read_passages
from nomicbert.text.tokenizer import Tokenizer

LONGEST = 256
VOCABULARY = 30522

Encode = Callable[[list[str]], Sequence[Sequence[int]]]


def ours() -> Encode:
    settings = read_folder(packaged_weights()).tokenizer
    tokenizer = Tokenizer.from_settings(settings, VOCABULARY)
    return lambda texts: tokenizer.encode(texts, LONGEST)[0]


def tokenizers() -> Encode:
    rust = RustTokenizer.from_file(str(packaged_weights() / "tokenizer.json"))
    rust.no_padding()
    rust.enable_truncation(LONGEST)
    return lambda texts: [found.ids for found in rust.encode_batch(texts)]


def transformers() -> Encode:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packaged_weights(), local_files_only=True)

    def encode(texts: list[str]) -> Sequence[Sequence[int]]:
        ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
        return ids

    return encode


@pytest.fixture(scope="module")
def texts(pytestconfig: pytest.Config) -> list[str]:
    return [passage.text for passage in read_passages(20 if pytestconfig.option.quick else 2000)]


@pytest.mark.parametrize("make", [ours, tokenizers, transformers])
def test_tokenizer(benchmark: Any, texts: list[str], make: Callable[[], Encode]) -> None:
    encode = make()
    # times only compare between tokenizers that give the same ids
    assert list(map(list, encode(texts))) == list(map(list, ours()(texts)))
    benchmark(encode, texts)
