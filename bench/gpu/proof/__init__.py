"""Eight minutes on a GPU: correctness, speed, and the best launch settings.

`python -m bench.gpu.proof` runs the stages of `stages`; docs/gpu.md explains how to use 15 minutes
on a GPU. `precompile` fills Triton's cache in the background. `baseline` measures the machine,
`smoke` compares each op with fp64, `parity` whole models with transformers, `speed` times them,
`profiling` splits their time by kernel, `variants` races launch settings from variants.json and
`winners` makes a launch table of them. Read the output of `summary` first.
"""
