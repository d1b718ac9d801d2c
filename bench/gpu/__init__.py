"""Kernels and whole models on an NVIDIA GPU, compared with other libraries and with our goals.

`proof` is for a session of minutes (docs/gpu.md), `python -m bench.gpu` for an hour. Both run their
cases through `runner`, and `python -m bench.gpu.report` makes tables and a plot of either.
bench/README.md explains how to use them.

`machine` checks before a run, `place` is a device and how to measure on it, `race` checks and times
kernels; `gemm`, `launches`, `attention` and `ops` are their cases. `rivals` are whole models,
`models` and `stream` their cases. `plan` lists the cases of each part, `goals` the target figures.
`proven` marks a launch table, using `digests` of kernels and rows.
"""
