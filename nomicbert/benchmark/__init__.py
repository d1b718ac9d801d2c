"""Benchmark of whole models: this package and alternative libraries, interleaved on the same texts.

Where in the flow: on top of the package. `workloads` draws texts, `peers` lists the libraries,
`run` measures, `lines` stores results. `nomicbert bench` and bench/throughput.py call it.
"""
