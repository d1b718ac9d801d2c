"""Load tool of the embedding server: throughput, latency, overload, memory, and equal bits.

`python -m bench.serve --help` lists the subcommands. The client needs the standard library, numpy
and orjson only, and takes uvloop if it is installed. It never imports nomicbert, except in the
process that `encode` starts.
"""
