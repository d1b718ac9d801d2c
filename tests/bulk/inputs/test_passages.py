"""Files of Markdown and text as passages: where they begin and end, and what is never lost."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomicbert.bulk.inputs.columns import carried_schema
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.inputs.markdown import HEADING, LONGEST
from nomicbert.bulk.inputs.passages import PIECE
from nomicbert.bulk.inputs.rows import Position, Row, Span
from nomicbert.bulk.inputs.sources import find_sources

Found = list[tuple[int, str]]


def rows_of(path: Path, **options: object) -> list[Row]:
    sources = find_sources([str(path)], InputFormat.passages)
    feed = Feed(sources, [Span(0)], **options)  # type: ignore[arg-type]
    return [feed.take().row for _ in feed]


def passages_of(folder: Path, content: str | bytes) -> Found:
    path = folder / "a.md"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = []
    for row in rows_of(path):
        assert isinstance(row.fields, dict)
        assert row.fields["text"] == row.text
        found.append((int(row.fields["line"]), row.text))
    return found


CASES: dict[str, tuple[str, Found]] = {
    "paragraphs below their headings": (
        "# Cats\n\nThey purr.\nA lot.\n\n## Food\nFish.\n\nMice.\n# Dogs\nThey bark.\n",
        [
            (3, "Cats\nThey purr.\nA lot."),
            (7, "Cats > Food\nFish.\n\nMice."),
            (11, "Dogs\nThey bark."),
        ],
    ),
    "text without headings": ("one\ntwo\n\nthree", [(1, "one\ntwo\n\nthree")]),
    "underlined headings": (
        "Cats\n====\nThey purr.\n\nFood\n---\nFish.\n\na\nb\n---\nc\n",
        [(3, "Cats\nThey purr."), (7, "Cats > Food\nFish.\n\na\nb\n\nc")],
    ),
    "a heading with nothing below it": (
        "# Buy milk\n# Plans\n## Today\n## Later\nSleep.\n#\nend\n",
        [(1, "Buy milk"), (3, "Plans > Today"), (5, "Plans > Later\nSleep."), (7, "end")],
    ),
    "no heading": ("#tag\n####### seven\n\\# x\n", [(1, "#tag\n####### seven\n\\# x")]),
    "carriage returns and a byte order mark": (
        "\ufeff# Cats\r\n\r\nThey purr.\r\n \t\r\nA lot.",
        [(3, "Cats\nThey purr.\n\nA lot.")],
    ),
    "fences": (
        "# Code\n```sh\n# no heading\n\n----\n~~~\n```\nafter\n~~~\nopen\n\n# to the end\n",
        [
            (
                2,
                "Code\n```sh\n# no heading\n\n----\n~~~\n```\n\nafter\n\n~~~\nopen\n\n# to the end",
            )
        ],
    ),
    "front matter": (
        "---\ntitle: 'My cat'\ntags: [a]\n---\n# My cat\nIt purrs.\n# Food\nFish.\n",
        [(6, "My cat\nIt purrs."), (8, "My cat > Food\nFish.")],
    ),
    "front matter of Hugo": ('+++\ntitle = "Cat"\n+++\nx\n', [(4, "Cat\nx")]),
    "two thematic breaks": ("---\n\nfirst\n\n---\nsecond\n", [(3, "first\n\nsecond")]),
    "front matter without an end": ("---\na: 1\nb\n", [(2, "a: 1\nb")]),
    "floods of blank lines": ("a\n" + "\n" * 5000 + "b\n" + "\n" * 5000, [(1, "a\n\nb")]),
    "nothing": ("", []),
    "blank": (" \n\n***\n", []),
}


@pytest.mark.parametrize("name", CASES)
def test_where_passages_begin_and_end(name: str, tmp_path: Path) -> None:
    content, wanted = CASES[name]
    assert passages_of(tmp_path, content) == wanted


def test_paragraphs_share_a_passage_while_they_fit(tmp_path: Path) -> None:
    paragraphs = [f"{n} " + "word " * 50 + "end." for n in range(8)]
    found = passages_of(tmp_path, "# Title\n\n" + "\n\n".join(paragraphs))
    assert [line for line, _ in found] == [3, 7, 11, 15]
    assert [text.count(" end.") for _, text in found] == [2, 2, 2, 2]
    assert all(text.startswith("Title\n") for _, text in found)


def test_a_long_paragraph_is_cut_behind_a_sentence(tmp_path: Path) -> None:
    lines = [f"Line {n} has a sentence. And it\ngoes on" for n in range(100)]
    found = passages_of(tmp_path, "# T\n" + "\n".join(lines))
    for number, (line, text) in enumerate(found):
        assert text.startswith("T\n" + ("Line 0" if not number else "And it"))
        assert text.endswith("." if number < len(found) - 1 else "goes on")
        body = text.removeprefix("T\n").split("\n")[0]
        assert ("# T\n" + "\n".join(lines)).split("\n")[line - 1].endswith(body)


def test_code_is_whole_where_it_fits_and_else_cut_at_the_end_of_a_line(tmp_path: Path) -> None:
    short = "```\n" + "call(a. b)\n\n" * 40 + "```"
    (before, code) = passages_of(tmp_path, "word " * 100 + "\n\n" + short)
    assert before[0] == 1
    assert code == (3, short)
    long = "```\n" + "".join(f"call(a. b, {n})\n\n" for n in range(100)) + "```\nafter\n"
    found = passages_of(tmp_path, long)
    assert len(found) > 2
    whole = long.split("\n")
    for line, text in found:
        assert text.split("\n")[0] == whole[line - 1]
        assert text.split("\n")[-1] in whole
    assert found[-1][1].endswith("```\n\nafter")


def test_a_line_of_any_length(tmp_path: Path) -> None:
    """It is read in pieces, between which a character may be cut."""
    content = "语言。" * (PIECE // 3) + "\n\n# N\nnext"
    found = passages_of(tmp_path, content)
    assert {line for line, _ in found} == {1, 4}
    assert "".join(text for line, text in found if line == 1) == "语言。" * (PIECE // 3)
    assert found[-1] == (4, "N\nnext")


def test_deep_and_long_headings_leave_room_for_the_text(tmp_path: Path) -> None:
    content = "".join(f"{'#' * n} {'deep ' * 12}{n}\n" for n in range(1, 7)) + "body\n"
    content += "# " + "ü" * 5000 + "\nbody too\n"
    first, *rest = passages_of(tmp_path, content)
    heading, *body = first[1].split("\n")
    assert body[0] == "body"
    assert heading.endswith("deep 6")
    assert len(heading.encode()) <= HEADING
    assert "".join(text for _, text in [first, *rest]).count("ü") == 5000


WORDS = st.sampled_from(
    [
        *"ab",
        " ",
        "\n",
        "\n\n",
        "# ",
        "\n# H\n",
        "```\n",
        "~~~~",
        "---\n",
        "word. ",
        "语。",
        "é",
        "=\n",
        "x" * 900,
        "two words " * 100,
        "line\n" * 300,
    ]
)


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(WORDS, max_size=25))
def test_no_word_is_lost_or_doubled(
    pieces: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = "".join(pieces)
    found = passages_of(tmp_path_factory.mktemp("p"), content)
    assert all(len(text.encode()) <= LONGEST for _, text in found)
    lines = [line for line, _ in found]
    assert lines == sorted(lines)

    def characters(text: str) -> str:
        return "".join(c for c in text if c in "abxlinetwowordsé语")

    bodies = "".join(text for _, text in found)
    assert characters(bodies).count("x") == characters(content).count("x")
    if "#" not in content and "=" not in content and "---" not in content:
        assert characters(bodies) == characters(content)


def test_a_line_that_is_not_utf8_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"# T\nfirst\nbad \xff line\nlast\n")
    with pytest.raises(ValueError, match=r"a.md, row 2: line 3: byte 5 \(0xff\) is not UTF-8"):
        rows_of(path)
    feed = Feed(find_sources([str(path)], InputFormat.passages), [Span(0)], on_error="skip")
    taken = [feed.take() for _ in feed]
    assert [one.row.text for one in taken] == ["T\nfirst", "T\nlast"]
    (reject,) = taken[1].rejects
    assert (reject.number, reject.content) == (1, "bad � line")


def test_reading_goes_on_at_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.md.gz"
    content = "".join(f"# {n}\ntext {n}\n" for n in range(9))
    path.write_bytes(gzip.compress(content.encode()))
    rows = rows_of(path)
    assert [row.number for row in rows] == list(range(9))
    assert rows[3].after == Position(0, 4, None)
    assert rows_of(path, start=rows[3].after)[0].text == rows[4].text
    assert sum(row.size for row in rows) <= path.stat().st_size


def test_files_of_rows_keep_their_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a row", "n": 1}\n')
    (tmp_path / "b.md").write_text("# A\nb\n")
    (tmp_path / "c.csv").write_text("text,m\nthree,3\n")
    sources = find_sources([str(tmp_path)], InputFormat.passages)
    assert [source.format.value for source in sources] == ["jsonl", "passages", "csv"]
    feed = Feed(sources, [Span(n) for n in range(3)])
    assert list(feed) == ["a row", "A\nb", "three"]
    columns = carried_schema(sources)
    assert {column.name: str(column.type) for column in columns} == {
        "text": "string",
        "n": "int64",
        "line": "int64",
        "m": "string",
    }
