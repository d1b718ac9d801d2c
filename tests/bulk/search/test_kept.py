"""Texts whose vectors are kept: embedded once, again as far as they change, by one process."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert.bulk.embed_files import check_folder
from nomicbert.bulk.job import fingerprints
from nomicbert.bulk.job.folder import LocalFolder
from nomicbert.bulk.job.locked import Locked
from nomicbert.bulk.job.names import LOCK
from nomicbert.bulk.job.report import BulkReport
from nomicbert.bulk.progress import BulkProgress
from nomicbert.bulk.search import kept, reuse
from nomicbert.bulk.search.kept import Kept, embed_kept
from nomicbert.bulk.search.reuse import saved_vectors
from nomicbert.bulk.search.texts import find_texts, folder_for
from nomicbert.bulk.stored import open_vectors
from tests.bulk.job.standin import Hashes


class Counting(Hashes):
    """Notes the texts that it computes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(longest=10_000, **options)
        self.seen: list[str] = []

    def windows(self, texts: Iterator[str], progress: Any) -> Generator[Any, None, None]:
        def noting() -> Iterator[str]:
            for text in texts:
                self.seen.append(text)
                yield text

        yield from super().windows(noting(), progress)


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in "abc":
        sections = [f"# {name} {n}\ntext {n} of {name}\n" for n in range(4)]
        (folder / f"{name}.md").write_text("".join(sections))
    return folder


def keep(encoder: Any, said: list[str] | None = None, name: str = "notes") -> BulkReport:
    texts = find_texts([name], "text")
    return keep_all(encoder, texts.files, texts.folder, said).report


def keep_all(encoder: Any, files: list[str], folder: str, said: list[str] | None = None) -> Kept:
    return embed_kept(
        files,
        folder,
        encoder,
        field="text",
        say=[].append if said is None else said.append,
        open_progress=lambda total, left: BulkProgress("none", total, left),
    )


def contents() -> dict[str, Any]:
    """Text -> vector."""
    stored = open_vectors("notes/.nomicbert/vectors")
    texts = [str(row["text"]) for row in stored.take(range(stored.rows), ["text"])]
    return dict(zip(texts, stored.vectors().tolist(), strict=True))


def test_texts_are_embedded_once() -> None:
    encoder, said = Counting(), list[str]()
    assert keep(encoder, said).made == 12
    assert said == ["embedding 3 files into notes/.nomicbert/vectors"]
    assert len(encoder.seen) == 12
    again, said = Counting(), []
    assert keep(again, said).kept == 12
    assert (again.seen, said) == ([], [])
    assert check_folder("notes/.nomicbert/vectors").ok
    assert Path("notes/.nomicbert/.gitignore").read_text() == "*\n"


def test_only_what_has_changed_is_embedded_again(notes: Path) -> None:
    keep(Counting())
    path = notes / "b.md"
    path.write_text(path.read_text().replace("text 2", "other 2") + "# new\nadded\n")
    (notes / "c.md").rename(notes / "d.md")
    encoder, said = Counting(window=3), list[str]()
    assert keep(encoder, said).rows == 13
    assert encoder.seen == ["b 2\nother 2 of b", "new\nadded"]
    assert "b.md" in said[0]
    assert said[0].endswith(": embedding what is new")
    wanted = Hashes(longest=10_000)
    found = contents()
    assert "b 2\ntext 2 of b" not in found
    for text, vector in found.items():
        np.testing.assert_array_equal(np.float32(vector), wanted.vector(text))


def test_an_update_that_is_interrupted_loses_no_vectors(notes: Path) -> None:
    keep(Counting())
    path = notes / "a.md"
    path.write_text("# new\nadded\n" + path.read_text())

    class Interrupted(Counting):
        def windows(self, texts: Iterator[str], progress: Any) -> Generator[Any, None, None]:
            next(texts)
            raise KeyboardInterrupt
            yield

    with pytest.raises(KeyboardInterrupt):
        keep(Interrupted())
    saved = notes / ".nomicbert/vectors" / reuse.SAVED
    whole = saved.read_bytes()
    saved.write_bytes(whole[:-9])
    assert saved_vectors("notes/.nomicbert/vectors", Counting().identity) == {}
    saved.write_bytes(whole)
    other = Counting(model="other")
    assert saved_vectors("notes/.nomicbert/vectors", other.identity) == {}
    encoder = Counting()
    assert keep(encoder).rows == 13
    assert encoder.seen == ["new\nadded"]
    wanted = Hashes(longest=10_000)
    for text, vector in contents().items():
        np.testing.assert_array_equal(np.float32(vector), wanted.vector(text))
    assert not saved.exists()


def test_another_model_embeds_all_of_it() -> None:
    keep(Counting())
    encoder, said = Counting(model="other"), list[str]()
    keep(encoder, said)
    assert len(encoder.seen) == 12
    assert said == ["another model, option or version of nomicbert than before: embedding again"]


def test_vectors_that_were_damaged_are_made_again() -> None:
    keep(Counting())
    (part,) = Path("notes/.nomicbert/vectors").glob("part-*")
    part.write_bytes(b"PAR1")
    encoder, said = Counting(), list[str]()
    assert keep(encoder, said).made == 12
    assert len(encoder.seen) == 12
    assert "is damaged" in said[0]


def test_too_many_vectors_are_not_held_in_memory(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(Counting())
    monkeypatch.setattr(reuse, "MOST_VALUES", 12 * 8 - 1)
    (notes / "a.md").write_text("new\n")
    encoder = Counting()
    keep(encoder)
    assert len(encoder.seen) == 9


def test_a_second_search_waits_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "WAIT", 0.01)
    folder = LocalFolder("notes/.nomicbert/vectors")
    folder.make()
    said: list[str] = []
    waiting = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    class Said(list[str]):
        append = staticmethod(say)  # type: ignore[assignment]

    with folder.lock(LOCK):
        thread = threading.Thread(target=keep, args=(Counting(), Said()))
        thread.start()
        assert waiting.wait(30)
        assert not list(Path("notes/.nomicbert/vectors").glob("part-*"))
    thread.join(30)
    assert said[0] == "waiting for another search, which embeds into notes/.nomicbert/vectors"
    assert len(contents()) == 12


def test_a_search_that_has_waited_keeps_what_the_other_did(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see the change, and only one may begin anew."""
    keep(Counting())
    (notes / "a.md").write_text("new\n")
    plan, other = kept.plan_job, Counting()

    def late(files: Any, folder: Any, options: Any) -> Any:
        if options.restart:
            monkeypatch.setattr(kept, "plan_job", plan)
            keep(other)
            monkeypatch.setattr(kept, "WAIT", 0)
            raise Locked("the other search")
        return plan(files, folder, options)

    monkeypatch.setattr(kept, "plan_job", late)
    encoder = Counting()
    report = keep(encoder)
    assert (other.seen, encoder.seen) == (["new"], [])
    assert (report.kept, report.made) == (9, 0)


def test_a_change_that_the_fingerprint_does_not_show(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "END", 8)
    for path in notes.iterdir():
        os.utime(path, (1e9, 1e9))
    keep(Counting())
    assert keep(Counting()).kept == 12
    path = notes / "b.md"
    path.write_text(path.read_text().replace("text 2", "same 2"))
    encoder, said = Counting(), list[str]()
    keep(encoder, said)
    assert encoder.seen == ["b 2\nsame 2 of b"]
    assert said == ["notes/b.md was written since: embedding what is new"]


def test_files_have_their_names_of_today(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(Counting())
    (notes / "b.md").rename(notes / "bb.md")
    monkeypatch.chdir(notes)
    texts = find_texts(["."], "text")
    found = keep_all(Counting(), texts.files, texts.folder)
    assert found.report.kept == 12
    before = ["notes/a.md", "notes/b.md", "notes/c.md"]
    assert found.names == dict(zip(before, ["./a.md", "./bb.md", "./c.md"], strict=True))


def test_links_to_one_file_are_one_text(notes: Path) -> None:
    (notes / "latest.md").symlink_to("c.md")
    assert find_texts(["notes", "notes/a.md"], "text").files == [f"notes/{n}.md" for n in "abc"]
    assert keep(Counting()).rows == 12


def test_a_name_that_is_no_unicode(notes: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(notes) + b"/b\xff.md")).write_text("text\n")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    texts = find_texts(["notes"], "text")
    assert len(texts.files) == 3
    assert "is not valid Unicode" in next(iter(texts.left_out.values()))


def test_where_vectors_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = str(tmp_path / "cache/nomicbert/search/texts-")
    assert folder_for(["notes"]) == folder_for(["notes/"]).replace("//", "/")
    assert folder_for(["notes/a.md"]) == "notes/.nomicbert/a.md.vectors"
    monkeypatch.chdir("notes")
    assert folder_for(["a.md"]) == ".nomicbert/a.md.vectors"
    several = folder_for(["a.md", "b.md"])
    assert several.startswith(cache)
    assert several == folder_for(["b.md", "../notes/a.md"])
    assert several != folder_for(["a.md", "c.md"])
    assert folder_for(["*.md"]).startswith(cache)
    Path("../link.md").symlink_to("notes/a.md")
    assert folder_for(["../link.md"]) == "../.nomicbert/link.md.vectors"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert folder_for(["a.md"]).startswith(cache)


def test_files_that_are_no_texts(notes: Path) -> None:
    (notes / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe")
    (notes / "settings.json").write_text('{"theme": "dark"}')
    (notes / "rows.jsonl").write_text('{"text": "a row", "n": 1}\n')
    (notes / ".hidden.md").write_text("hidden")
    texts = find_texts(["notes"], "text")
    assert [Path(name).name for name in texts.files] == ["a.md", "b.md", "c.md", "rows.jsonl"]
    left_out = {Path(name).name: problem for name, problem in texts.left_out.items()}
    assert list(left_out) == ["picture.png", "settings.json"]
    assert "picture.png is a binary file" in left_out["picture.png"]
    assert "no field 'text'" in left_out["settings.json"]
    for name in left_out:
        with pytest.raises(ValueError, match=name):
            find_texts([f"notes/{name}"], "text")
    keep(Counting())
    stored = open_vectors("notes/.nomicbert/vectors")
    rows = stored.take(range(stored.rows), ["text", "line", "n"])
    assert [row for row in rows if row["n"]] == [{"text": "a row", "line": None, "n": 1}]
    assert [row["line"] for row in rows[:4]] == [2, 4, 6, 8]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission(notes: Path) -> None:
    (notes / "b.md").chmod(0)
    texts = find_texts(["notes"], "text")
    assert list(texts.left_out.values()) == ["cannot read notes/b.md: Permission denied"]
    with pytest.raises(ValueError, match=r"cannot read notes/b.md: Permission denied"):
        find_texts(["notes/b.md"], "text")


def test_nothing_to_search(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"\x89PNG\0")
    for name, problem in {
        "empty": "empty holds no files",
        "pictures": "pictures: no file holds texts: pictures/a.png is a binary file",
        "none.md": "cannot read none.md: No such file",
        "-": "standard input is read once, and texts are kept: name a file",
    }.items():
        with pytest.raises(ValueError, match=problem):
            find_texts([name], "text")


def test_lines_that_are_not_utf8_are_left_out(notes: Path) -> None:
    (notes / "a.md").write_bytes(b"good\n\nb\xe4d\n\nfine\n")
    report = keep(Counting())
    assert (report.rows, report.rejected) == (10, 1)
    (rejects,) = Path("notes/.nomicbert/vectors").glob("_rejected-*")
    assert "line 3: byte 2 (0xe4)" in json.loads(rejects.read_text())["problem"]
