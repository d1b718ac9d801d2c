"""Small tokenizers that need no network, in the layouts that the hub's checkpoints use.

Three kinds: the WordPiece of bert-base-uncased, a WordPiece
that knows Chinese characters, and a Unigram in the manner of XLM-R. Special tokens have the ids
of the real vocabularies, and `size` pads with tokens that no text contains up to any size, the
real one included. Texts made of WORDS and SENTENCES give few unknown tokens.
"""

from __future__ import annotations

import functools
import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = (
    "a an and are as be by can cat classification clustering code deep do document dog embed "
    "fast fox for from how in is it jump language learning long model of on over query red river "
    "run search sentence short text that the this to vector was what when where who with word"
).split()
SUFFIXES = "able ed er es ing ion ization ly ment ness s tion".split()
HANZI = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天"
    "如然作方成者多日都三小军二无同么经法当起与好看学什进种将还分此心前面又定见只主没公从北京文本向量检索相关章句示表深度习"
)
SENTENCES = (
    "what is deep learning?",
    "The quick brown fox jumps over the lazy dog.",
    "search_query: how do embeddings work, and who was first",
    "Ünïcode ACCENTS are stripped; 12345 tokens!",
    "北京大学在中国。什么是深度学习？",
    "x",
)

ENGLISH_SIZE = 378  # padded to 384 rows by the tiny nomic models, as 30522 is to 30528
CHINESE_SIZE = 544
UNIGRAM_SIZE = 442  # padded to 448 rows

_BERT_SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
_CHARACTERS = string.ascii_lowercase + string.digits
_WIDE_MARKS = "，。？！：；、（）"
_NO_MATCH = -100.0  # the log probability of pieces that only fill up the vocabulary


def wordpiece(
    size: int = ENGLISH_SIZE, *, truncation: int | None = None, fixed_padding: int | None = None
) -> Tokenizer:
    """The lower-casing WordPiece of bert-base-uncased.

    Args:
        size: number of tokens, at least those of the fixed part.
        truncation: baked-in truncation length; the hub's all-MiniLM-L6-v2 has 128.
        fixed_padding: baked-in padding length, likewise.
    """
    return _wordpiece("", size, truncation, fixed_padding)


def chinese_wordpiece(size: int = CHINESE_SIZE) -> Tokenizer:
    """The WordPiece of bert-base-chinese: every Chinese character is one token."""
    return _wordpiece(HANZI + _WIDE_MARKS, size, None, None)


def unigram(size: int = UNIGRAM_SIZE) -> Tokenizer:
    """A Unigram model in the manner of XLM-R: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    characters = _CHARACTERS + string.ascii_uppercase + string.punctuation + HANZI + _WIDE_MARKS
    pieces += [
        (character, -6.0 - 0.01 * i) for i, character in enumerate(dict.fromkeys(characters))
    ]
    # longer pieces score better than their characters, so that the best path is not the first one
    pieces += [("▁" + word, -4.0 - 0.05 * i) for i, word in enumerate(WORDS)]
    pieces += [(suffix, -5.0 - 0.05 * i) for i, suffix in enumerate(SUFFIXES) if len(suffix) > 1]
    pieces += [("▁search_", -4.5), ("学习", -7.0), ("深度", -7.5)]
    pieces += [(f"<unused{i}>", _NO_MATCH) for i in range(_filler(size, len(pieces) + 1))]
    pieces.append(("<mask>", 0.0))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


@functools.cache
def tokenizer_json(kind: str, size: int, truncation: int | None, padding: int | None) -> str:
    """The tokenizer.json of one kind ("english", "chinese", "unigram"), built once per process."""
    if kind == "english":
        return wordpiece(size, truncation=truncation, fixed_padding=padding).to_str()
    return {"chinese": chinese_wordpiece, "unigram": unigram}[kind](size).to_str()


@functools.cache
def vocabulary_text(kind: str, size: int) -> str:
    """The vocab.txt of a WordPiece kind: one token per line, in the order of the ids."""
    vocabulary = Tokenizer.from_str(tokenizer_json(kind, size, None, None)).get_vocab()
    return "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))


def _wordpiece(
    extra: str, size: int, truncation: int | None, fixed_padding: int | None
) -> Tokenizer:
    unused = iter(range(size))
    head = [_BERT_SPECIAL.get(i) or f"[unused{next(unused)}]" for i in range(104)]
    characters = [*dict.fromkeys(_CHARACTERS + extra)]
    body = [
        *string.punctuation,
        *characters,
        *(f"##{c}" for c in characters if c not in _WIDE_MARKS),
    ]
    body += [*(word for word in WORDS if len(word) > 1), *(f"##{s}" for s in SUFFIXES if s != "s")]
    tokens = head + body
    tokens += [f"[unused{next(unused)}]" for _ in range(_filler(size, len(tokens)))]
    tokenizer = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(_BERT_SPECIAL.values()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 101), ("[SEP]", 102)],
    )
    if truncation is not None:
        tokenizer.enable_truncation(truncation)
    if fixed_padding is not None:
        tokenizer.enable_padding(length=fixed_padding)
    return tokenizer


def _filler(size: int, used: int) -> int:
    if size < used:
        raise ValueError(f"a vocabulary of {size} tokens is too small: it needs {used}")
    return size - used
