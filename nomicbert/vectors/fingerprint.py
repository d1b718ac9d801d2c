"""Provisional."""

from nomicbert.vectors.pooling import Finish


class Fingerprint:
    @classmethod
    def of(cls, model, tokenizer):
        return cls()

    def of_call(self, finish, prompt):
        return "0" * 32 + "." + "0" * 8


def matches(expected, found):
    return found.startswith(expected)
