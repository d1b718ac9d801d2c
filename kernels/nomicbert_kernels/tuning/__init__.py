"""Finds launch settings by measuring them on the GPU at hand; `nomicbert tune` calls it.

`problems` says which calls of which kernels are measured, `candidates` which settings each one
tries, `search` checks and times them, `tables` writes what was faster to where `launch` reads it
before the shipped rows. Nothing of this runs unless it is asked for: a model's results hang on a
file that can be looked at, not on what happened to be fast in its first batch.
"""
