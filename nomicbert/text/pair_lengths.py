"""How a pair of texts that is too long is cut; for `tokenizer`."""


def longest_first(a: int, b: int, room: int) -> tuple[int, int]:
    """Tokens to keep of two texts that together exceed the room.

    Source: the strategy of this name in the `tokenizers` library.
    """
    shorter, longer = min(a, b), room - min(a, b)
    if shorter > longer:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if a > b else (shorter, longer)
