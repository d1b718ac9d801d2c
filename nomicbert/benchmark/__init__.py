"""Whole models in turns: ours and the libraries that people would take instead, on the same texts.

Where in the flow: above the package. `workloads` draws texts, `peers` lists who computes them,
`run` measures, `lines` holds what was found. `nomicbert bench` and bench/throughput.py call it.
"""
