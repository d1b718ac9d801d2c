"""`nomicbert bench`: time a checkpoint on this machine, and compare with other libraries.

Where in the flow: `nomicbert.benchmark` measures; this module prints its lines as a table or as
JSON lines, whose fields docs/bench.md lists.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nomicbert.bulk.output import STDOUT, refuse_folder
from nomicbert.cli import console, options
from nomicbert.cli.commands import full_name

if TYPE_CHECKING:
    from nomicbert.benchmark.group import Step
    from nomicbert.benchmark.lines import Line

    Work = Callable[[Step], Iterator[list[Line]]]

EXAMPLES = """\b
Examples:
  nomicbert bench nomic-ai/nomic-embed-text-v1.5 --quick
  nomicbert bench ./my-checkpoint --case mixture --dtype float32
  nomicbert bench ./my-checkpoint --peer transformers --threads 4
  nomicbert bench ./my-checkpoint --rounds 9 --json lines.jsonl
"""
# Texts per hour, of passages and of chunks of a document; and the time of a query, a question and a
# paragraph.
CASES = ("passages", "fixed-512", "latency-8", "latency-32", "latency-128")
QUICK_TOKENS, QUICK_ROUNDS = 256, 1


def bench(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint's folder or repository id."),
    ],
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="fixed-N, queries, passages, mixture or latency-N. Can be repeated. "
            "Default: passages, fixed-512, latency-8, latency-32, latency-128.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="float32, bfloat16, float16 (GPU only) or int8. Can be repeated. "
            "Default: all that the device runs.",
            show_default=False,
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare with this library only. Can be repeated. Default: all installed.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Approximate tokens per case. Default: 2048.", show_default=False),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds over all libraries. Default: 5.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads per library. Default: torch's setting.", show_default=False
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few tokens and one round, to check that it runs.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep exported models here for the next run."),
    ] = None,
    device: options.Device = "auto",
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write JSON lines to FILE; - for stdout, no table.",
        ),
    ] = None,
) -> None:
    """Time a checkpoint, interleaved with the other installed libraries.

    Whole models are timed, interleaved on the same texts, from token ids or from strings to
    vectors. A library that is missing or cannot load the checkpoint is listed with the reason.
    Each case is printed and written as soon as it is measured. Exit code 1 if nothing was measured.
    """
    # Slow imports, so they follow the checks of the arguments.
    import torch

    from nomicbert.arguments import as_device
    from nomicbert.benchmark.peers import dtypes_of
    from nomicbert.benchmark.plan import Checkpoint, Options
    from nomicbert.benchmark.run import check, run
    from nomicbert.loading import hub

    place = as_device(device)
    wanted = Options(
        cases=list(dict.fromkeys(case or CASES)),
        dtypes=list(dict.fromkeys(map(full_name, dtype or dtypes_of(place)))),
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
            console.say(f"{name} is left out: this checkpoint takes at most {most} tokens per text")
        else:
            cases.append(name)
    if not cases:
        console.say("nothing was measured: every case is left out")
        raise typer.Exit(console.FAILED)
    wanted = replace(wanted, cases=cases)
    if not _measure(lambda step: run(checkpoint, wanted, step), file, json_file != STDOUT):
        console.say("nothing was measured: no library could take part")
        raise typer.Exit(console.FAILED)


def _measure(work: "Work", file: Path | None, tables: bool) -> bool:
    """Print each finished case as a table or as lines, and write its lines to the file.

    Returns: whether anything was measured.
    """
    from tqdm import tqdm

    from nomicbert.benchmark.lines import MEASURED, as_json
    from nomicbert.benchmark.table import as_table, left_out

    lines: list[Line] = []
    # opened first, so that a file that cannot be written fails before the measurement
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
    """Run the work under a progress bar that shows the current step."""
    with console.open_bar("Measuring", " steps") as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what, refresh=True)
            bar.update()

        yield from work(step)
