"""bench/serve: the client, the counts and the arithmetic, against a toy server on loopback."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from bench.serve import process
from bench.serve.__main__ import main
from bench.serve.answer import Answer, Malformed
from bench.serve.client import Address, Connection, Reply
from bench.serve.dialects import PATHS, Variant, WrongAnswer, differing_bits, usage
from bench.serve.load import Server, Stop, Target, arrivals, closed_loop, open_loop
from bench.serve.options import parse
from bench.serve.records import flags
from bench.serve.same import compare, variants
from bench.serve.tally import Tally, latencies, medians, percentile, ratios, slope
from bench.serve.texts import WORDS, WORKLOADS, Texts
from nomicbert.cli.demo import packaged_weights
from nomicbert.loading.folder import read_folder
from nomicbert.text.tokenizer import Tokenizer
from tests.support.toy_server import WIDTH, Toy, chunked, embedded, http, plain, vector

ROOT = Path(__file__).parents[2]
OK = http(200, b'{"a": 1}')


def fed(answer: Answer, data: bytes, size: int) -> Answer:
    for at in range(0, len(data), size):
        answer.feed(data[at : at + size])
    return answer


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize(
    ("data", "body", "keeps"),
    [
        (OK, b'{"a": 1}', True),
        (chunked(b"0123456789abcdef\r\n0\r\n\r\n"), b"0123456789abcdef\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b'{"a": 1}', True),
        (http(503, b"", "Connection: close"), b"", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", b"ab", False),
        (b"HTTP/1.1 204 None\r\n\r\n", b"", True),
    ],
)
def test_answers_arrive_in_pieces(size: int, data: bytes, body: bytes, keeps: bool) -> None:
    assert not fed(Answer(), data[:-1], size).done
    answer = fed(Answer(), data, size)
    assert answer.done
    assert (answer.body, answer.keeps) == (body, keeps)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    answer = fed(Answer(), b"HTTP/1.1 200 OK\r\n\r\nabc", 5)
    assert not answer.done
    assert answer.end()
    assert answer.body == b"abc"
    cut = fed(Answer(), OK[:-1], 100)
    assert not cut.end()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"x" * 70_000,
    ],
)
def test_other_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        Answer().feed(data)


def ask(url: str, count: int = 1, timeout: float = 30) -> list[Reply]:
    """Replies to requests that follow each other on one connection."""

    async def run() -> list[Reply]:
        connection = Connection(Address.parse(url))
        body = Variant().body("toy", ["a text"])
        head = connection.address.head("/v1/embeddings")
        sent = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        found = [await connection.ask(sent, timeout) for _ in range(count)]
        connection.close()
        await asyncio.sleep(0)
        return found

    return asyncio.run(run())


@pytest.mark.parametrize(("close", "connections"), [(False, 1), (True, 4)])
def test_a_connection_is_kept_unless_the_server_closes_it(close: bool, connections: int) -> None:
    def handler(toy: Toy, writer: Any, path: str, asked: dict) -> bytes:
        return http(200, embedded(path, asked), *(["Connection: close"] if close else []))

    with Toy(handler) as toy:
        replies = ask(toy.url, 4)
    assert [reply.status for reply in replies] == [200] * 4
    assert toy.connections == connections


def reset(toy: Toy, writer: asyncio.StreamWriter, path: str, asked: dict) -> None:
    writer.write(OK[:20])
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    toy.loop.call_later(0.05, writer.transport.abort)


def half(toy: Toy, writer: asyncio.StreamWriter, path: str, asked: dict) -> None:
    writer.write(OK[:-3])


def rubbish(toy: Toy, writer: asyncio.StreamWriter, path: str, asked: dict) -> None:
    writer.write(b"what?\r\n\r\n")


@pytest.mark.parametrize(
    ("handler", "errors"),
    [(half, {"closed"}), (reset, {"reset", "closed"}), (rubbish, {"malformed"})],
)
def test_broken_connections_are_replies(handler: Any, errors: set[str]) -> None:
    with Toy(handler) as toy:
        replies = ask(toy.url, 3)
    assert {reply.error for reply in replies} <= errors
    assert [reply.status for reply in replies] == [0] * 3
    assert toy.posts == 3  # each on a new connection


def test_a_server_that_is_not_there_and_one_that_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        silent = ask(f"http://127.0.0.1:{port}", timeout=0.2)
    assert [reply.error for reply in silent] == ["timed out"]
    assert [r.error for r in ask(f"http://127.0.0.1:{port}", 2)] == ["connect: refused"] * 2


@pytest.mark.parametrize("url", ["https://a", "localhost:80", "http://", "http://h:x", "http://?q"])
def test_wrong_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--url"):
        Address.parse(url)


def test_paths_of_urls() -> None:
    def line(url: str, path: str = "/v1/embeddings") -> bytes:
        return Address.parse(url).head(path).split(b" HTTP")[0]

    assert line("http://127.0.0.1:1") == b"POST /v1/embeddings"
    assert line("http://127.0.0.1:1/base/") == b"POST /base/v1/embeddings"
    assert line("http://127.0.0.1:1/embeddings") == b"POST /embeddings"
    assert b"Bearer k\r\n" in Address.parse("http://127.0.0.1:1").head("/embed", "k")


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values, share) for share in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([3.0], 50) == 3.0
    assert percentile([], 50) is None
    found = latencies([0.004, 0.001, 0.002, 0.003])
    assert found == {"p50_ms": 2.0, "p90_ms": 4.0, "p99_ms": 4.0, "max_ms": 4.0}


def test_slopes_medians_and_ratios() -> None:
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx(2)
    assert slope([0, 1, 2], [0, 3, 0]) == pytest.approx(0)
    assert slope([1], [1]) is None
    assert slope([2, 2], [1, 5]) is None
    assert medians([{"a": 1.0, "b": None}, {"a": 9.0, "b": 4.0}, {"a": 2.0, "b": 6.0}]) == {
        "a": 2.0,
        "b": 5.0,
    }
    # of pairs, so a round in which both are slow changes nothing
    ours, other = [{"r": 10.0}, {"r": 2.0}, {"r": 9.0}], [{"r": 5.0}, {"r": 1.0}, {"r": 3.0}]
    assert ratios(ours, other) == {"r": 2.0}
    assert ratios([{"r": 1.0}], [{"r": 0.0}]) == {"r": None}
    assert ratios([{"r": 1.0}], []) == {"r": None}


def test_every_outcome_is_counted_once() -> None:
    tally, variant = Tally(until=10.0), Variant()
    good = embedded("/v1/embeddings", {"input": ["one two"]})
    wrong = embedded("/v1/embeddings", {"input": ["one", "two"]})
    replies = [
        Reply(200, good, "", 9.0),
        Reply(200, good, "", 11.0),
        Reply(200, wrong, "", 9.0),
        Reply(200, b"<html>", "", 9.0),
        Reply(429, b"", "", 9.0),
        Reply(503, b"", "", 9.0),
        Reply(500, b"no", "", 9.0),
        Reply(0, b"", "timed out", 9.0),
        Reply(0, b"", "reset", 9.0),
    ]
    for reply in replies:
        tally.sent += 1
        assert not tally.balanced
        tally.add(reply, 8.5, variant=variant, texts=1, drawn=5, check=True)
        assert tally.balanced
    assert (tally.answered, tally.within, tally.timed_out) == (2, 1, 1)
    assert tally.refused == {"429": 1, "503": 1}
    assert tally.failed == {"wrong answer": 2, "status 500": 1, "reset": 1}
    figures = tally.figures(2.0)
    assert figures["requests_per_second"] == 1.0
    assert figures["tokens_per_second"] == 4.0  # 2 answers of 4 tokens
    assert figures["drawn_tokens_per_second"] == 5.0
    assert figures["p50_ms"] == 500
    assert list(tally.refusals) == [0.5, 0.5]


def test_texts_are_unique_and_have_the_tokens_that_are_drawn() -> None:
    found = read_folder(packaged_weights())
    tokenizer = Tokenizer.from_settings(found.tokenizer, found.config.vocab_size)
    assert len(set(WORDS)) == 256
    for workload in WORKLOADS.values():
        texts = Texts(workload, seed=3)
        # neighbours, and numbers whose leads share most of their words
        numbers = [*range(300 // workload.texts), 2**20, 2**28, 2**34 - 1]
        drawn = [texts.request(number) for number in numbers]
        again = Texts(workload, seed=3)
        assert drawn == [again.request(number) for number in numbers]
        assert drawn[0] != Texts(workload, seed=4).request(numbers[0])
        every = [text for request, _ in drawn for text in request]
        assert len(set(every)) == len(every) == workload.texts * len(numbers)
        assert sum(tokenizer.count(every)) == sum(tokens for _, tokens in drawn)
    leads = {tuple(texts.text(k)[0].split()[:5]) for k in (0, *(1 << bit for bit in range(40)))}
    assert len(leads) == 41
    few = Texts(WORKLOADS["short"], repeat=3)
    assert len({few.request(number)[0][0] for number in range(30)}) == 3


def test_lengths_of_the_workloads() -> None:
    def mean(name: str) -> float:
        texts = Texts(WORKLOADS[name])
        return float(np.mean([texts.text(k)[1] for k in range(1021)]))

    assert mean("short") == pytest.approx(10, abs=0.5)
    assert mean("passages") == mean("bulk") == pytest.approx(110, abs=2)
    mixed = Texts(WORKLOADS["mixed"])
    longest = max(mixed.text(k)[1] for k in range(1021))
    assert 200 < longest <= 256


@pytest.mark.parametrize("dimensions", [None, 4])
@pytest.mark.parametrize("dialect", ["openai", "tei", "nomic", "cohere", "ollama"])
def test_vectors_keep_their_bits_in_every_dialect(dialect: str, dimensions: int | None) -> None:
    forms = ("float", "base64") if dialect == "openai" else ("float",)
    for form in forms:
        variant = Variant(dialect, form, dimensions)
        asked = orjson.loads(variant.body("m", ["one two", "three"]))
        body = embedded(PATHS[dialect], asked)
        expected = np.stack([vector(text, dimensions or WIDTH) for text in ("one two", "three")])
        found = variant.vectors(body, 2)
        assert differing_bits(found, expected) == 0
        assert usage(body) == (7 if dialect in ("openai", "nomic") else None)
        with pytest.raises(WrongAnswer, match=r"0 to 2|2 vectors for 3"):
            variant.vectors(body, 3)
        with pytest.raises(WrongAnswer):
            variant.vectors(b'{"data": 3}', 2)


def test_scores_are_in_the_order_of_the_texts() -> None:
    variant = Variant("rerank")
    body = embedded("/rerank", orjson.loads(variant.body("m", ["one two", "three"])))
    expected = np.stack([vector(text, WIDTH)[-1:] for text in ("one two", "three")])
    assert differing_bits(variant.vectors(body, 2), expected) == 0
    with pytest.raises(WrongAnswer, match="indices"):
        variant.vectors(body, 3)


def test_dialects_take_turns(tmp_path: Path) -> None:
    asked: collections.Counter[str] = collections.Counter()

    def handler(toy: Toy, writer: Any, path: str, body: dict) -> bytes:
        asked[path] += 1
        return plain(toy, writer, path, body)

    with Toy(handler) as toy:
        words = ["open", "--url", toy.url, "--rate", "60", "--seconds", "1", "--dialect"]
        code, (line,) = call(*words, ",".join(PATHS), out=tmp_path / "lines.jsonl")
    assert code == 0
    assert line["answered"] == line["sent"]
    assert line["wrong"] == line["differing"] == 0
    # one of each before the run, then each gets its share; some are asked again afterwards
    assert set(asked) == set(PATHS.values())
    assert min(asked.values()) >= 1 + line["sent"] // len(PATHS)


def test_answers_with_wrong_vectors() -> None:
    def body(*rows: Any, first: int = 0) -> bytes:
        data = [{"index": i + first, "embedding": row} for i, row in enumerate(rows)]
        return json.dumps({"data": data}).encode()

    with pytest.raises(WrongAnswer, match="indices"):
        Variant().vectors(body([1.0], first=1), 1)
    with pytest.raises(WrongAnswer, match="shape"):
        Variant(dimensions=2).vectors(body([1.0]), 1)
    with pytest.raises(WrongAnswer, match="finite"):
        Variant().vectors(body([1e300, 1.0]), 1)
    with pytest.raises(WrongAnswer):
        Variant().vectors(body([1.0, 2.0], [1.0]), 2)


def test_differing_bits() -> None:
    one = np.array([[1.0, 2.0]], np.float32)
    other = one.copy()
    other.view(np.uint32)[0, 1] ^= 0b101
    assert differing_bits(one, one.copy()) == 0
    assert differing_bits(one, other) == 2
    assert differing_bits(np.float32([0.0]), np.float32([-0.0])) == 1
    found = compare([one, one, "status 500", one], [one, other, one, one[:, :1]])
    assert (found["compared"], found["unanswered"], found["shapes"]) == (3, 1, 1)
    assert (found["differing"], found["bits"], found["example"]) == (1, 2, "status 500")


def busy(every: int) -> Callable[..., bytes]:
    """A handler that answers the first of each `every` requests, and refuses the others."""

    def handler(toy: Toy, writer: Any, path: str, asked: dict) -> bytes:
        if toy.posts % every != 1:
            return http(429 if toy.posts % 2 else 503, b'{"error": "busy"}')
        return plain(toy, writer, path, asked)

    return handler


def load(toy: Toy, workload: str = "short") -> Target:
    server = Server("toy", Address.parse(toy.url), "toy")
    return Target(server, Texts(WORKLOADS[workload]), [Variant()], iter(range(10**6)), 30)


def test_a_closed_loop_counts_what_the_server_counts() -> None:
    tally = Tally()
    with Toy() as toy:
        asyncio.run(closed_loop(load(toy), 5, 0.3, tally, Stop()))
    assert tally.sent == tally.answered == toy.posts > 5
    assert toy.connections == 5
    assert len(set(toy.texts)) == toy.posts
    assert tally.tokens == tally.drawn == sum(len(text.split()) + 2 for text in toy.texts)


def test_an_open_loop_balances_under_refusals() -> None:
    tally, lags = Tally(), list[float]()
    times = list(arrivals(400, 0.5, "poisson", 1))
    assert 120 < len(times) < 300
    with Toy(busy(3)) as toy:
        run = open_loop(load(toy), iter(times), tally, Stop(), most=50, lags=lags)
        asyncio.run(run)
    assert tally.balanced
    assert tally.sent == toy.posts == len(times) == len(lags)
    assert tally.answered == toy.statuses[200] == -(-len(times) // 3)
    assert tally.refused == {"429": toy.statuses[429], "503": toy.statuses[503]}


def test_arrivals() -> None:
    assert list(arrivals(4, 1, "fixed", 0)) == [0, 0.25, 0.5, 0.75]
    assert list(arrivals(5, 9, "poisson", 1)) == list(arrivals(5, 9, "poisson", 1))
    gaps = np.diff(list(arrivals(100, 100, "poisson", 1)))
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() == pytest.approx(0.01, rel=0.1)  # as exponential gaps have


def test_waiting_for_a_connection_is_latency() -> None:
    """All are due at once on one connection: the last waits for all others."""
    tally = Tally()
    with Toy() as toy:
        toy.delay = 0.05
        asyncio.run(open_loop(load(toy), iter([0.0] * 8), tally, Stop(), most=1, lags=[]))
    assert toy.connections == 1
    assert max(tally.seconds) > 8 * 0.05 * 0.9
    assert sorted(tally.seconds) == list(tally.seconds)


def call(*words: str, out: Path | None = None) -> tuple[int, list[dict[str, Any]]]:
    """Run the command; its exit code and its lines."""
    code = main([*words, *(["--out", str(out)] if out else [])])
    return code, [json.loads(line) for line in out.read_text().splitlines()] if out else []


def test_closed_compares_two_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Toy() as one, Toy(busy(2)) as two:
        words = ["closed", "--url", one.url, "--url", two.url, "--name", "ours", "--name", "other"]
        words += ["--connections", "1,3", "--seconds", "0.2", "--rounds", "2", "--warmup", "0"]
        pid = str(os.getpid())
        words += ["--pid", pid, "--pid", pid, "--workload", "short", "--api-key", "secret"]
        code, lines = call(*words, out=tmp_path / "deep" / "lines.jsonl")
    assert code == 0
    assert [line["connections"] for line in lines] == [1, 3]
    assert "secret" not in json.dumps(lines)
    sent = 0
    for line in lines:
        ours, other = line["servers"]
        assert (ours["name"], other["name"]) == ("ours", "other")
        assert len(ours["rounds"]) == len(other["rounds"]) == 2
        assert {*ours["rounds"][0]} >= {"cpu_ms_per_request", "p99_ms", "tokens_per_second"}
        found = line["ratios"]["ours / other"]["requests_per_second"]
        pairs = zip(ours["rounds"], other["rounds"], strict=True)
        each = [a["requests_per_second"] / b["requests_per_second"] for a, b in pairs]
        assert found == pytest.approx(np.median(each))
        sent += sum(counts["sent"] for counts in ours["counts"])
        assert all(counts["refused"] > 0 for counts in other["counts"])
        assert line["machine"]["cores"] == os.cpu_count()
        assert line["commit"]
        assert line["flags"]["workload"] == "short"
    assert sent == one.posts - 1  # one request before the run
    table = capsys.readouterr().out
    assert "ours / other" in table
    assert "x" in table.split("ours / other")[1]


def test_open_multiplies_the_capacity(tmp_path: Path) -> None:
    with Toy(busy(3)) as toy:
        words = ["open", "--url", toy.url, "--rate", "0.5x", "--seconds", "0.5", "--settle", "0"]
        words += ["--capacity-seconds", "0.2", "--workload", "short", "--pid", str(os.getpid())]
        code, (line,) = call(*words, out=tmp_path / "lines.jsonl")
    assert code == 0
    assert line["rate"] == pytest.approx(line["capacity"] / 2)
    assert line["balanced"]
    assert line["sent"] == line["answered"] + line["refused"] + line["failed"] + line["timed_out"]
    assert line["goodput_of_capacity"] == pytest.approx(line["goodput"] / line["capacity"])
    assert line["ready_path"] == "/health/ready"
    assert line["ready_seconds"] is not None
    assert line["compared"] > 0
    assert line["wrong"] == line["differing"] == 0
    assert line["rss_peak_mb"] > 10


def test_open_finds_vectors_that_are_wrong_under_load(tmp_path: Path) -> None:
    """The toy changes the sign, or the last bit, of what it was asked the first time."""

    def handler(toy: Toy, writer: Any, path: str, asked: dict) -> bytes:
        first = toy.texts.count(toy.texts[-1]) == 1
        change = 0 if not first else toy.mask
        return http(200, embedded(path, asked, change))

    for mask, wrong in ((1, False), (0x7F000000, True)):
        with Toy(handler) as toy:
            toy.mask = mask
            words = ["open", "--url", toy.url, "--rate", "60", "--seconds", "0.5"]
            words += ["--workload", "short", "--spacing", "fixed", "--first", "0"]
            code, (line,) = call(*words, out=tmp_path / f"{mask}.jsonl")
        assert line["compared"] == line["differing"] > 0
        assert bool(line["wrong"]) == bool(code) == wrong


def test_soak_fits_the_slope_of_memory(tmp_path: Path) -> None:
    with Toy() as toy:
        words = ["soak", "--url", toy.url, "--rate", "40", "--minutes", "0.01", "--after", "0"]
        words += ["--pid", str(os.getpid()), "--settle", "0", "--sample-every", "0.05"]
        code, (line,) = call(*words, "--workload", "short", out=tmp_path / "lines.jsonl")
    assert code == 0
    assert line["answered"] == toy.posts - 1 - line["compared"] > 0
    assert isinstance(line["rss_slope_mb_per_minute"], float)
    assert line["open_before"] > 0
    assert line["open_after"] > 0


def test_mixed_measures_three_phases(tmp_path: Path) -> None:
    with Toy() as toy:
        words = ["mixed", "--url", toy.url, "--seconds", "0.3", "--rounds", "1", "--texts", "3"]
        code, (line,) = call(*words, "--query-rate", "20", out=tmp_path / "lines.jsonl")
    assert code == 0
    middle = line["medians"]
    assert {*middle} == {"bulk alone", "both", "queries alone"}
    assert middle["queries alone"]["query_count"] == 6
    assert middle["both"]["query_count"] == 6
    assert "query_p50_ms" not in middle["bulk alone"]
    assert "bulk_tokens_per_second" not in middle["queries alone"]
    rate = "bulk_drawn_tokens_per_second"
    assert line["bulk_kept"] == pytest.approx(middle["both"][rate] / middle["bulk alone"][rate])
    assert line["unanswered"] == 0


def test_same_passes_where_bits_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def handler(toy: Toy, writer: Any, path: str, asked: dict) -> bytes:
        if asked.get("dimensions") == 7 or asked.get("dimensionality") == 7:
            return http(400, b'{"error": "no such size"}')
        return plain(toy, writer, path, asked)

    with Toy(handler) as toy:
        words = ["same", "--url", toy.url, "--requests", "90", "--at-once", "16"]
        code, (line,) = call(*words, "--sizes", "4,7", out=tmp_path / "lines.jsonl")
    assert code == 0
    assert (line["compared"], line["bits"], line["unanswered"]) == (90, 0, 0)
    # those of 7 dimensions are left out, and named
    assert len(line["variants"]) == len(variants(["openai", "tei", "nomic"], [4]))
    assert "no such size" in capsys.readouterr().err


def test_same_leaves_out_a_dialect_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def handler(toy: Toy, writer: Any, path: str, asked: dict) -> bytes:
        return http(404, b"no route") if path == "/embed" else plain(toy, writer, path, asked)

    with Toy(handler) as toy:
        words = ["same", "--url", toy.url, "--requests", "20"]
        code, (line,) = call(*words, "--sizes", "4", out=tmp_path / "lines.jsonl")
    assert code == 0
    assert len(line["variants"]) == len(variants(["openai", "nomic"], [4]))
    assert capsys.readouterr().err.count("left out") == 1


def test_same_counts_bits_that_differ(tmp_path: Path) -> None:
    """The toy changes two bits when it has been asked for a text before."""

    def handler(toy: Toy, writer: Any, path: str, asked: dict) -> bytes:
        again = toy.texts.count(toy.texts[-1]) > 1 and "variants" not in toy.texts[-1]
        return http(200, embedded(path, asked, 0b11 if again else 0))

    with Toy(handler) as toy:
        words = ["same", "--url", toy.url, "--requests", "40", "--sizes", "4"]
        words += ["--dialects", "openai,nomic", "--first", "0"]
        code, (line,) = call(*words, out=tmp_path / "lines.jsonl")
    assert code == 1
    assert (line["compared"], line["differing"], line["bits"]) == (40, 40, 80)


def test_same_refuses_a_cache(capsys: pytest.CaptureFixture[str]) -> None:
    hits = iter((3, 8))
    metrics = lambda: b'nomicbert_cache_hits_total{model="m"} %d.0\n' % next(hits)  # noqa: E731
    with Toy(metrics=metrics) as toy:
        code, _ = call("same", "--url", toy.url, "--requests", "5", "--dialects", "tei")
    assert code == 1
    assert "5 hits of its cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--url", "http://127.0.0.1:1"], "connect: refused"),
        (["--url", "gopher://x"], "must look like http://"),
        (["--url", "http://127.0.0.1:1", "--pid", "999999999"], "no such process"),
    ],
)
def test_a_wrong_server_is_a_clear_error(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["closed", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_path_and_a_wrong_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with Toy(lambda *_: http(404, b"no such route")) as toy:
        assert main(["closed", "--url", f"{toy.url}/base"]) == 2
    assert "POST /base/v1/embeddings" in capsys.readouterr().err
    with Toy(lambda *_: http(200, b"{}")) as toy:
        assert main(["closed", "--url", toy.url]) == 2
    assert "not an answer of openai float" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["closed"], "--url"),
        (["closed", "--url", "u", "--name", "a", "--name", "b"], "--name is given 2 times"),
        (["closed", "--url", "u", "--connections", "0"], "numbers above 0"),
        (["closed", "--url", "u", "--dialect", "tei", "--format", "base64"], "openai only"),
        (["open", "--url", "u", "--rate", "fast"], "is no rate"),
        (["same", "--url", "u", "--dialects", "soap"], "soap"),
        (["closed", "--url", "u", "--taskset", "one"], "must be cores"),
    ],
)
def test_wrong_options(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("word", ["", "closed", "open", "soak", "mixed", "same", "encode"])
def test_help(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word, "--help"] if word else ["--help"])
    assert ended.value.code == 0
    assert "exit codes" in capsys.readouterr().out


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}


def test_ctrl_c_prints_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    with Toy() as toy:
        words = ["closed", "--url", toy.url, "--seconds", "600", "--connections", "2,3"]
        command = [sys.executable, "-m", "bench.serve", *words, "--warmup", "0", "--out", str(out)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
        ) as started:
            assert toy.asked.wait(60)
            while toy.posts < 20:
                assert started.poll() is None
            started.send_signal(signal.SIGINT)
            table, _ = started.communicate(timeout=60)
    assert "requests/s" in table
    first = json.loads(out.read_text().splitlines()[0])
    assert first["interrupted"]
    (counts,) = first["servers"][0]["counts"]
    assert counts["answered"] > 0
    assert counts["balanced"]
    assert started.returncode == 0


def test_the_client_does_not_import_nomicbert() -> None:
    code = "import sys, bench.serve.__main__; print(*{n.split('.')[0] for n in sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment(), cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert {"numpy", "orjson"} <= loaded
    assert not loaded & {"nomicbert", "nomicbert_kernels", "torch", "starlette", "httptools"}


def test_figures_of_a_process_and_its_children(tmp_path: Path) -> None:
    here = os.getpid()
    before = process.descriptors(here)
    with (tmp_path / "file").open("w"):
        assert process.descriptors(here) == before + 1
    assert process.rss(here) > 10
    code = "x = bytearray(200 << 20); x[:] = b'1' * len(x); print(1, flush=True); input()"
    size = process.rss(here)
    spent = process.cpu_seconds(here)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in process.family(here)
        assert process.rss(here) > size + 150
        during = process.cpu_seconds(here)
        assert during > spent
        child.communicate(b"\n")
    assert process.cpu_seconds(here) >= during  # that of a child that has ended still counts
    assert process.family(child.pid) == []
    assert process.cpu_seconds(child.pid) == 0


@pytest.mark.slow
def test_encode_is_interleaved_with_a_server(tmp_path: Path) -> None:
    with Toy() as toy:
        words = ["encode", "--checkpoint", str(packaged_weights()), "--url", toy.url]
        words += ["--workload", "short", "--texts", "4", "--seconds", "0.2", "--rounds", "2"]
        code, (line,) = call(*words, "--connections", "2", out=tmp_path / "lines.jsonl")
    assert code == 0
    assert len(line["encode"]["rounds"]) == len(line["servers"][0]["rounds"]) == 2
    for figures in line["encode"]["rounds"]:
        # 10 tokens per text on average, by our tokenizer
        assert 8 <= figures["tokens_per_second"] / figures["texts_per_second"] <= 12
    pairs = zip(line["servers"][0]["rounds"], line["encode"]["rounds"], strict=True)
    each = [server["texts_per_second"] / ours["texts_per_second"] for server, ours in pairs]
    assert line["ratios"]["A"]["texts_per_second"] == pytest.approx(np.median(each))
    assert line["flags"]["checkpoint"] == packaged_weights().name


@pytest.mark.slow
def test_encode_names_a_checkpoint_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["encode", "--checkpoint", str(tmp_path / "empty")]) == 2
    assert "cannot encode" in capsys.readouterr().err


def test_the_cores_of_the_client_are_not_those_of_encode(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    words = ["--checkpoint", str(tmp_path), "--taskset", str(core), "--name", "x", "--url", "u"]
    options = parse(["encode", *words])
    assert options.taskset == {core}
    assert options.all_cores == os.sched_getaffinity(0)
    assert flags(options)["taskset"] == [core]
    assert parse(["encode", *words, "--cores", "0-2,5"]).cores == {0, 1, 2, 5}
    json.dumps(flags(options))
