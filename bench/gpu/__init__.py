"""Kernels and whole models on an NVIDIA GPU, beside their peers and beside what we want of them.

python -m bench.gpu measures, and writes a line of JSON for each part, case and peer;
python -m bench.gpu.report makes tables and a plot of them. bench/README.md says how to use both.

`place` is where it runs, `race` proves and times kernels, `gemm`, `launches`, `attention` and `ops`
are their cases; `rivals` are whole models, `models` and `stream` their cases; `plan` says which
cases a part has; `goals` are the figures that we want.
"""
