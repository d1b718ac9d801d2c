"""The tokens of a prompt, which some checkpoints leave out of pooling.

Source: `_get_prompt_length` of sentence-transformers' Transformer module.
"""

from nomicbert.text.tokenizer import Tokenizer


def prompt_tokens(tokenizer: Tokenizer, prompt: str, max_length: int) -> int:
    """Number of leading tokens of a text that count as its prompt's.

    They are those of the prompt alone, at most `max_length`, with the special ones before it and
    without one at its end. A text whose first word joins the prompt loses as many all the same.
    """
    if not prompt:
        return 0
    ((ids,), _) = tokenizer.encode([prompt], max_length)
    added = tokenizer.rust.get_added_tokens_decoder().items()
    special = {*tokenizer.suffix, *(number for number, token in added if token.special)}
    return len(ids) - (ids[-1:] != [] and ids[-1] in special)
