"""The tokens of a prompt, which some checkpoints leave out of pooling.

Source: `_get_prompt_length` of sentence-transformers' Transformer module.
"""

from nomicbert.text.tokenizer import Tokenizer


def prompt_tokens(tokenizer: Tokenizer, prompt: str, max_length: int) -> int:
    """Number of leading tokens of a text that count as its prompt's.

    They are those of the prompt alone, at most `max_length`, with the special ones before it and
    without one of `tokenizer.special` at its end. Where the files do not name the token after a
    text (PreTrainedTokenizerFast), it counts as the prompt's, and one more of the text is lost. A
    text whose first word joins the prompt loses as many all the same.
    """
    if not prompt:
        return 0
    ((ids,), _) = tokenizer.encode([prompt], max_length)
    return len(ids) - (not tokenizer.special.isdisjoint(ids[-1:]))
