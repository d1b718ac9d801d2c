"""A GPU for eight minutes: what is correct on it, how fast it is, which settings are best there.

`python -m bench.gpu.proof` runs the stages of `stages`; docs/gpu.md says how to spend 15 minutes on
a GPU. `precompile` fills Triton's cache in the background. `baseline` measures the machine,
`smoke` compares each op with fp64, `parity` whole models with transformers, `speed` times them,
`profiling` splits their time by kernel, `variants` races launch settings from variants.json and
`winners` makes a launch table of them. `summary` is what to read first.
"""
