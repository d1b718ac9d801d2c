"""Delete the parts of a job, and nothing else.

Where in the flow: `run` calls this once a model is loaded, with all locks of the job held. The
manifest goes last: if the process dies before, the rest is still known to be of this job.
"""

from nomicbert.bulk.job.folder import Folder
from nomicbert.bulk.job.footer import Damaged, read_footer
from nomicbert.bulk.job.manifest import Manifest
from nomicbert.bulk.job.names import MANIFEST, read_name
from nomicbert.bulk.job.resume import refuse_foreign, refuse_stranger


def refuse_strangers(folder: Folder, manifest: Manifest) -> list[str]:
    """The files of a job, those that must go last at the end.

    Raises: ValueError: a visible file is not of the job. OSError: reading failed.
    """
    tasks = len(manifest.tasks)
    refuse_foreign(folder, tasks)
    own = {name: at for name in folder.names() if (at := read_name(name)) and at.task < tasks}
    for name, at in own.items():
        if at.is_part:
            try:
                footer = read_footer(folder, name)
            except Damaged:
                continue
            refuse_stranger(folder, name, footer, manifest.run)
    # from the end, so that what is left begins where the job begins
    return [*sorted(own, key=lambda name: (own[name].is_part, own[name].number))[::-1], MANIFEST]


def clear(folder: Folder, names: list[str]) -> None:
    """Delete the files of a job, durably and in this order, and its temporary files.

    Raises: OSError: one cannot be deleted.
    """
    folder.sweep("part-")
    folder.sweep("_rejected-")
    for name in names:
        folder.remove(name)
