"""A GPU for some minutes: what is right, how fast it is, and which settings are the best there.

python -m bench.gpu.proof runs the stages of `stages` in their order; docs/gpu.md says how to spend
fifteen minutes. `warm` compiles kernels beside the rest, `ground` is what the machine can do,
`smoke` compares each op with fp64, `right` whole models with transformers, `whole` times them,
`trace` each of their kernels, `variants` races launch settings that `variants.json` lists, and
`summary` is what is read first.
"""
