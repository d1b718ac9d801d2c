"""`nomicbert bench`: how fast is this checkpoint here, and how fast would other libraries be?

Where in the flow: `nomicbert.benchmark` measures; here its lines become a table for people, or
JSON lines for programs, whose fields docs/bench.md lists.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nomicbert.bulk.output import STDOUT, refuse_folder
from nomicbert.cli import console, options

if TYPE_CHECKING:
    from nomicbert.benchmark.group import Step
    from nomicbert.benchmark.lines import Line

    Work = Callable[[Step], Iterator[list[Line]]]

EXAMPLES = """\b
Examples:
  nomicbert bench nomic-ai/nomic-embed-text-v1.5 --quick
  nomicbert bench ./my-checkpoint --case mixture --case latency-16 --dtype float32
  nomicbert bench ./my-checkpoint --peer transformers --peer onnxruntime --threads 4
  nomicbert bench ./my-checkpoint --tokens 8192 --rounds 9 --cache ./exports --json lines.jsonl
"""
CASES = ("fixed-128", "fixed-512", "mixture", "latency-16")
QUICK_TOKENS, QUICK_ROUNDS = 256, 1
# Seconds until a bar that nobody asked for shows itself.
DELAY = 2.0


def bench(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint's folder or repository id."),
    ],
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this one; may be given several times: fixed-N, queries, passages, mixture "
            "or latency-N.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only float32, bfloat16, float16 (on a GPU) or int8; may be given several times.",
            show_default=False,
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this one beside ours; may be given several times.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="In a case, about; default 2048.", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Of all peers in turn; default 5.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="For each peer; default those of torch.", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few tokens, one round: see that everything runs.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep exported models there for the next run."),
    ] = None,
    device: options.Device = "auto",
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Write JSON lines there; - for stdout, no table."
        ),
    ] = None,
) -> None:
    """Time a checkpoint beside the libraries that are installed here.

    Whole models, token ids or strings to vectors, in turns on the same texts. A library that is
    missing or cannot take the checkpoint is named with the reason. Each case is printed, and
    written, when it is done. Ends with exit code 1 when nothing was measured.
    """
    # Takes seconds: what is wrong with the arguments has been said by now.
    import torch

    from nomicbert.arguments import as_device
    from nomicbert.benchmark.peers import dtypes_of
    from nomicbert.benchmark.plan import Checkpoint, Options
    from nomicbert.benchmark.run import check, run
    from nomicbert.loading import hub

    place = as_device(device)
    wanted = Options(
        cases=list(dict.fromkeys(case or CASES)),
        dtypes=list(dict.fromkeys(dtype or dtypes_of(place))),
        families=list(dict.fromkeys(peer)) if peer else None,
        tokens=tokens or (QUICK_TOKENS if quick else 2048),
        rounds=rounds or (QUICK_ROUNDS if quick else 5),
        threads=threads or torch.get_num_threads(),
        device=place,
        cache=cache,
        quick=quick,
    )
    check(wanted)
    file = None if json_file in (None, STDOUT) else Path(json_file)
    if file is not None:
        refuse_folder(str(file))
        if not file.parent.is_dir():
            raise ValueError(f"--json {file}: the folder {file.parent} does not exist")
    folder = hub.resolve(model, revision=revision, local_files_only=local_files_only)
    checkpoint = Checkpoint.of(model, folder)
    cases = []
    for name in wanted.cases:
        if checkpoint.case(name, wanted.tokens, place) is None:
            most = checkpoint.longest
            console.say(f"{name} is left out: this checkpoint's texts have {most} tokens at most")
        else:
            cases.append(name)
    if not cases:
        console.say("nothing was measured: every case is left out")
        raise typer.Exit(console.FAILED)
    wanted = replace(wanted, cases=cases)
    if not _measure(lambda step: run(checkpoint, wanted, step), file, json_file != STDOUT):
        console.say("nothing was measured: nobody could take part")
        raise typer.Exit(console.FAILED)


def _measure(work: "Work", file: Path | None, tables: bool) -> bool:
    """Print each case as a table or as lines, and write its lines, when it is done.

    Returns: whether anything was measured.
    """
    from tqdm import tqdm

    from nomicbert.benchmark.lines import MEASURED, as_json
    from nomicbert.benchmark.table import as_table, left_out

    lines: list[Line] = []
    # what cannot be written is refused before the work begins
    with nullcontext() if file is None else file.open("w", encoding="utf-8") as opened:
        for block in _with_bar(work):
            lines += block
            if opened is not None:
                opened.write(as_json(block))
                opened.flush()
            said = as_table(block) if tables else as_json(block).rstrip()
            if said:
                with tqdm.external_write_mode():
                    console.put(f"{said}\n" if tables else said)
    if tables and (said := left_out(lines)):
        console.put(said)
    return any(line["status"] == MEASURED for line in lines)


def _with_bar(work: "Work") -> "Iterator[list[Line]]":
    """Do the work beneath a line that says what is done."""
    from tqdm import tqdm

    with tqdm(desc="Measuring", unit=" steps", disable=None, delay=DELAY) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what, refresh=True)
            bar.update()

        yield from work(step)
