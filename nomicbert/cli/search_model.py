"""What `nomicbert search` searches: vectors, and the model that embeds questions alike.

Where in the flow: `search` calls one of the two functions once its options are checked. Mistakes
that do not need the model are found before it is loaded.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nomicbert.bulk.optional import need_pyarrow
from nomicbert.cli import console
from nomicbert.cli.demo import packaged_weights
from nomicbert.cli.embed_request import counted, say_left_out
from nomicbert.errors import HubError

if TYPE_CHECKING:
    from nomicbert.bulk.search.questions import Call
    from nomicbert.bulk.stored import StoredVectors
    from nomicbert.cross_encoder import CrossEncoder
    from nomicbert.embedder import Embedder

DTYPES = ("float32", "float16", "bfloat16")
ADVICE = "pass one with -m, such as -m nomic-ai/nomic-embed-text-v1.5"


class Searched(NamedTuple):
    """Vectors and their model.

    Attributes:
        stored: the vectors.
        embedder: their model.
        call: keywords with which it makes such vectors.
        model: its name.
        names: of a file in the column `source` -> to show instead.
    """

    stored: "StoredVectors"
    embedder: "Embedder"
    call: "Call"
    model: str
    names: Mapping[str, str]


def are_vectors(inputs: Sequence[str]) -> bool:
    """Whether the input is a folder of vectors, or a Parquet file of some.

    Raises: ValueError: there are others with it.
    """
    from nomicbert.bulk.vector_files import holds_vectors  # needs NumPy, which help does without

    found = [name for name in inputs if holds_vectors(name)]
    if found and len(inputs) > 1:
        raise ValueError(
            f"{found[0]} holds vectors: search it alone, or name inputs that are all texts"
        )
    return bool(found)


def of_vectors(name: str, model: str | None, loading: dict[str, Any]) -> Searched:
    """Open vectors of `nomicbert embed`, and load their model.

    Args:
        name: folder, URL or file.
        model: of the questions; None for the one that the manifest names.
        loading: arguments of Embedder; with a dtype of None that of the vectors.

    Raises: ValueError: the vectors cannot be searched, or are of another model. NomicBertError: the
        model cannot be loaded.
    """
    from nomicbert.bulk.stored import open_vectors

    stored = open_vectors(name)
    stored.refuse_integers()
    about = stored.description
    if model is None:
        model = str(about.get("checkpoint") or "")
        if not model:
            raise ValueError(f"{name} does not name the model of its vectors: pass it with -m")
        loading = {**loading, "revision": loading["revision"] or about.get("revision") or None}
    if loading["dtype"] is None:
        known = about.get("dtype")
        loading = {**loading, "dtype": known if known in DTYPES else DTYPES[0]}

    # slow imports, so they follow the checks
    from nomicbert.bulk.search.questions import call_of
    from nomicbert.embedder import Embedder

    embedder = Embedder(model, **loading)
    call = call_of(embedder, stored)
    own, theirs = embedder.model.ops.name, about.get("backend")
    if theirs not in (None, own):
        console.tell(
            f"{name} was computed by backend {theirs}, and questions by {own}: scores may differ "
            "in their last digits"
        )
    return Searched(stored, embedder, call, model, {})


def of_texts(
    inputs: Sequence[str],
    field: str,
    columns: Sequence[str] | None,
    model: str | None,
    loading: dict[str, Any],
) -> Searched:
    """Embed texts, as far as that has not been done, and open their vectors.

    Args:
        inputs: files, folders, patterns and URLs.
        field: name of the field that holds the text, in files of rows.
        columns: names of the fields that are kept with it; None for all.
        model: None for the packaged one.
        loading: arguments of Embedder; with a dtype of None float32.

    Raises: ValueError: an input cannot be read. NomicBertError: the model cannot be loaded.
        OSError: reading or writing failed.
    """
    need_pyarrow("search")
    from nomicbert.bulk.search.texts import find_texts

    texts = find_texts(inputs, field)
    if texts.left_out:
        (first, *_), more = texts.left_out.values(), len(texts.left_out) - 1
        others = f" (and {counted(more, 'other file')})" if more else ""
        console.say(f"left out{others}: {first}")
    model = model or _packaged()

    # slow imports, so they follow the checks
    from nomicbert.bulk.encoding import EmbedderEncoder
    from nomicbert.bulk.progress import BulkProgress, Form
    from nomicbert.bulk.search.kept import embed_kept
    from nomicbert.embedder import Embedder

    embedder = Embedder(model, **{**loading, "dtype": loading["dtype"] or DTYPES[0]})
    name = embedder._prompts.document_name
    encoder = EmbedderEncoder(embedder, prompt_name=name, prompt="" if name is None else None)
    form: Form | None = "none" if console.is_quiet() else None
    report, stored, names = embed_kept(
        texts.files,
        texts.folder,
        encoder,
        field=field,
        columns=columns,
        say=console.tell,
        open_progress=lambda total, left: BulkProgress(form, total, left, console.tell),
    )
    if report.made:
        where = f"{texts.folder}/_rejected-*.jsonl"
        say_left_out(report.skipped, report.rejected, report.truncated, where)
    if stored is None:
        raise ValueError(f"{' '.join(inputs)}: there is no text to search")
    return Searched(stored, embedder, {}, model, names)


def load_reranker(name: str, searched: Searched, loading: dict[str, Any]) -> "CrossEncoder":
    """Load a cross-encoder, on the device of the questions' model.

    Raises: ValueError: the texts are not stored with the vectors, or it has several scores.
        NomicBertError: it cannot be loaded.
    """
    if searched.stored.field is None:
        raise ValueError(
            f"--reranker reads the texts, and {searched.stored.name} does not hold them: embed "
            "with --columns all"
        )
    from nomicbert.cross_encoder import CrossEncoder

    shared = {key: loading[key] for key in ("local_files_only", "device", "backend")}
    reranker = CrossEncoder(name, **shared)
    if reranker.num_labels != 1:
        raise ValueError(f"--reranker {name} has {reranker.num_labels} scores per pair, wanted one")
    return reranker


def _packaged() -> str:
    """The packaged weights, where they are installed."""
    try:
        folder = str(packaged_weights())
    except HubError as error:
        raise ValueError(f"no model is installed: {ADVICE}") from error
    console.tell(f"the model is the packaged all-MiniLM-L6-v2; {ADVICE.replace('one', 'another')}")
    return folder
