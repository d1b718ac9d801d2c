"""`nomicbert search`: questions to one's own texts, or to vectors of `nomicbert embed`.

Where in the flow: this module checks the options and loads the models. `bulk.search` keeps the
vectors of texts and scans them, `search_output` prints what was found.

Source: Reimers and Gurevych 2019, arXiv:1908.10084 (search by cosine of sentence embeddings);
Nogueira and Cho 2019, arXiv:1901.04085 (reranking).
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nomicbert.bulk.inputs.rows import SOURCE
from nomicbert.cli import checks, console, options, search_model
from nomicbert.cli.options import BackendName, DtypeName
from nomicbert.cli.search_arguments import sort_out
from nomicbert.cli.search_output import Answer, Hit, Report, as_json, as_text, place_of
from nomicbert.errors import NomicBertError

if TYPE_CHECKING:
    from nomicbert.cross_encoder import CrossEncoder

EXAMPLES = """\b
Examples:
  nomicbert search notes/ "What did we decide about backups?"
  nomicbert search notes/ -m nomic-ai/nomic-embed-text-v1.5
  nomicbert search vectors/ "Which animals purr?" -k 3 --bits
  nomicbert search docs/ --questions questions.txt --json | jq .answers
  nomicbert search docs/ "How do I resume?" --reranker ./my-cross-encoder
"""
# Rows that a reranker reads, at least.
CANDIDATES = 50
PROMPT = "question: "


def search(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT... [QUESTION]",
            help="Texts, or a folder of vectors; and the question. Default: ask for questions.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question", metavar="TEXT", help="A question; all arguments are inputs then."
        ),
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Questions, one per line; - for stdin."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="K", help="Results per question.")] = 10,
    bits: Annotated[
        bool,
        typer.Option("--bits", help="Compare signs first: faster, a few neighbours are missed."),
    ] = False,
    reranker: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_ID", help="Cross-encoder that orders the nearest 50 (or K) again."
        ),
    ] = None,
    as_document: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of rankings.")
    ] = False,
    field: Annotated[
        str,
        typer.Option(metavar="NAME", help="Field of the text, in files of JSONL, CSV, ..."),
    ] = "text",
    columns: Annotated[
        str,
        typer.Option(metavar="LIST", help="Fields of rows to keep: all (default), none, or a,b."),
    ] = "all",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="PATH_OR_ID",
            help="Default: that of the vectors; for texts the packaged all-MiniLM-L6-v2.",
        ),
    ] = None,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="Dtype of the model. Default: that of the vectors; for texts float32."),
    ] = None,
    device: options.Device = "auto",
    backend: options.Backend = BackendName.auto,
    rotary_scaling_factor: options.RotaryScalingFactor = None,
) -> None:
    """Search texts by meaning.

    Notes (Markdown, plain text) are cut into passages, rows of JSONL, CSV and Parquet stay rows.
    They are embedded once, into a folder beside them, and again as far as they change. Vectors of
    nomicbert embed -o FOLDER/ are searched with the model that their manifest names.
    """
    asked = sort_out(arguments or [], question or [], questions)
    if as_document and asked.questions is None:
        raise ValueError("--json prints one document: pass the question, or --questions FILE")
    kept = checks.column_names(columns)
    are_vectors = search_model.are_vectors(asked.inputs)
    loading: dict[str, Any] = {
        "revision": revision,
        "local_files_only": local_files_only,
        "dtype": None if dtype is None else dtype.value,
        "device": device,
        "backend": backend.value,
        "rotary_scaling_factor": rotary_scaling_factor,
    }
    if are_vectors:
        searched = search_model.of_vectors(asked.inputs[0], model, loading)
    else:
        searched = search_model.of_texts(asked.inputs, field, kept, model, loading)
    ranks = None if reranker is None else search_model.load_reranker(reranker, searched, loading)
    if asked.questions is None:
        _converse(searched, k, bits, ranks)
        return
    answers = answer(searched, asked.questions, k, bits, ranks)
    if as_document:
        stored, name = searched.stored, searched.model
        report = Report(stored.name, stored.rows, stored.width, name, bits, reranker, answers)
        console.put(as_json(report))
    else:
        console.put(as_text(answers))


def answer(
    searched: search_model.Searched,
    questions: Sequence[str],
    k: int,
    bits: bool,
    reranker: "CrossEncoder | None",
) -> list[Answer]:
    """Search for some questions.

    Args:
        searched: vectors and the model.
        questions: texts.
        k: results per question.
        bits: compare signs first.
        reranker: orders the nearest CANDIDATES (or k) again, by question and text.
    """
    import numpy as np

    from nomicbert.bulk.search.questions import embed_questions
    from nomicbert.bulk.search_vectors import search_vectors

    stored = searched.stored
    vectors = embed_questions(searched.embedder, questions, searched.call)
    most = k if reranker is None else max(k, CANDIDATES)
    nearest = search_vectors(stored, vectors, most, bits=bits)
    needed = np.unique(nearest.rows).tolist()
    fields = dict(zip(needed, stored.take(needed), strict=True))
    answers = []
    for question, scores, rows in zip(
        questions, nearest.scores.tolist(), nearest.rows.tolist(), strict=True
    ):
        hits = [
            _hit(searched, rank, score, row, fields[row])
            for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)
        ]
        answers.append(Answer(question, _reranked(question, hits, k, reranker)))
    return answers


def _hit(
    searched: search_model.Searched, rank: int, score: float, row: int, fields: dict[str, object]
) -> Hit:
    field = searched.stored.field
    others = {name: value for name, value in fields.items() if name != field}
    if isinstance(source := others.get(SOURCE), str):
        others[SOURCE] = searched.names.get(source, source)
    text = None if field is None else fields[field]
    where = place_of(others, row)
    return Hit(rank, score, None, row, where, None if text is None else str(text), others)


def _reranked(question: str, hits: list[Hit], k: int, reranker: "CrossEncoder | None") -> list[Hit]:
    if reranker is None:
        return hits
    texts = [hit.text or "" for hit in hits]
    order = reranker.rank(question, texts, top_k=k, show_progress_bar=False)
    return [
        replace(hits[one["corpus_id"]], rank=rank, reranker_score=one["score"])
        for rank, one in enumerate(order, 1)
    ]


def _converse(
    searched: search_model.Searched, k: int, bits: bool, reranker: "CrossEncoder | None"
) -> None:
    """Answer questions of the terminal until its end (Ctrl-D) or Ctrl-C."""
    with suppress(ImportError):
        import readline  # noqa: F401 (arrow keys and history)
    while True:
        try:
            question = input(PROMPT).strip()
        except EOFError:
            console.put("")
            return
        if not question:
            continue
        try:
            console.put(as_text(answer(searched, [question], k, bits, reranker)))
        except (NomicBertError, ValueError) as error:
            console.say(str(error))
