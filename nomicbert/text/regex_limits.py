r"""Find regexes that may take a text's length to the third power, or exponential time.

Oniguruma, which the `tokenizers` library uses, tries all ways to match: (\w+)+$ has 2^n at a word
of n characters, \w*\w*! has n^2 at each of them. It gives up after 10^7 at one place, but there are
as many places as characters. The regexes of tokenizers are alternatives with at most one repetition
before the end of what must match, such as \s*[\r\n]+ or \s+(?!\S).

a?a?a?aaa and (a|a)(a|a)(a|a)b double the ways with each ? and each group: a part that matches in n
ways counts as log2(n) / 10 of a repetition.
"""

import math
import re
from dataclasses import dataclass

LONGEST = 2_000
# Times that a bounded repetition is as good as unbounded.
MANY = 10
# Repetitions before something that must match, from which on they are too many.
SEVERAL = 2
# One character: escaped, or any of a class. Anchors are left as they are.
_ATOM = re.compile(
    r"\\[pPx]\{[^}]*\}|\\[^bBAzZGKyY]|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]", re.DOTALL
)
_TOKEN = re.compile(
    r"(?:(?P<open>\((?:\?(?:<[=!]|[:=!>~]|<\w*>|[\w-]*:?))?)|(?P<bar>\|)|(?P<close>\))|.)"
    r"(?P<times>[*+?]|\{\d*,?\d*\})?[+?]?",
    re.DOTALL,
)


def plain(regex: str) -> str:
    """The regex with "x" for its characters; anchors, groups and repetitions are left."""
    return _ATOM.sub("x", regex)


@dataclass
class _Group:
    """An open group.

    Attributes:
        before: repetitions before it.
        most: the same plus those in it, in the alternative that has most.
        alternatives: so far.
        optional: whether it may be left out.
        varied: whether it has repetitions or alternatives.
    """

    before: float
    most: float
    alternatives: int = 1
    optional: bool = False
    varied: bool = False


def fault(regex: str) -> str | None:
    """What is wrong with a regex: too long, or too slow."""
    if len(regex) > LONGEST:
        return f"has {len(regex):,} characters"
    tokens = [*_TOKEN.finditer(plain(regex))]
    groups, repeated = [_Group(0, 0)], 0.0
    optional = _optional_groups(tokens)
    for index, token in enumerate(tokens):
        times, group = token["times"] or "", groups[-1]
        if token["open"]:
            left_out = group.optional or index in optional
            groups.append(_Group(repeated, repeated, optional=left_out))
            continue
        if token["bar"]:
            group.most, group.varied, repeated = max(group.most, repeated), True, group.before
            group.alternatives += 1
            continue
        if token["close"] and len(groups) > 1:
            groups.pop()
            repeated = max(group.most, repeated) + _share(group.alternatives)
            if group.varied and times and times != "?":
                return "repeats a group with repetitions or alternatives"
            groups[-1].varied |= group.varied
        elif repeated >= SEVERAL and not group.optional and not _may_be_absent(times):
            return "has several repetitions before something that must match"
        groups[-1].varied |= not _is_fixed(times)
        repeated += _repetitions(times)
    return None


def _optional_groups(tokens: list[re.Match[str]]) -> set[int]:
    """Indices of the opening tokens of groups that may be absent."""
    found, pending = set(), []
    for index, token in enumerate(tokens):
        if token["open"]:
            pending.append(index)
        elif token["close"] and pending:
            opening = pending.pop()
            if _may_be_absent(token["times"] or ""):
                found.add(opening)
    return found


def _may_be_absent(times: str) -> bool:
    return times[:1] in {"*", "?"} or times.startswith(("{0", "{,"))


def _is_fixed(times: str) -> bool:
    """Whether what is repeated has one length: once, or a number of times."""
    return not times or (times.startswith("{") and "," not in times)


def _repetitions(times: str) -> float:
    """1 for an unbounded repetition, a share of it for a bounded one, 0 for none."""
    if times.startswith("{"):
        least, comma, most = times[1:-1].partition(",")
        if (comma and not most) or int(most or least or 0) > MANY:
            return 1
        return _share(int(most) - int(least or 0) + 1) if comma else 0
    return {"*": 1, "+": 1, "?": _share(2)}.get(times, 0)


def _share(ways: int) -> float:
    """What a part that matches in so many ways counts."""
    return math.log2(max(ways, 1)) / 10
