"""The points of a map as Parquet, which embedding-atlas and others read.

Where in the flow: `write_map` writes it next to the page. Importing this module needs pyarrow.
"""

from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nomicbert.bulk.map.colours import Colours, Groups
from nomicbert.bulk.projection import Floats

# A column of the vectors with one of these names is written as "input_x", ...
OWN = ("x", "y", "group")


def write_table(file: BinaryIO, table: Any, places: Floats, colours: Colours) -> None:
    """Write the columns of each point, its place, and the name of its group.

    Args:
        file: the output.
        table: pa.Table of n rows.
        places: (n, 2).
        colours: of the n points; a scale has no groups, and gives no column.
    """
    names = [f"input_{name}" if name in OWN else name for name in table.column_names]
    made = table.rename_columns(names)
    made = made.append_column("x", pa.array(places[:, 0]))
    made = made.append_column("y", pa.array(places[:, 1]))
    if isinstance(colours, Groups):
        made = made.append_column("group", pa.array(colours.names))
    pq.write_table(made, file, compression="zstd")
