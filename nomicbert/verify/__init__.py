"""Is a checkpoint computed rightly on this machine? A comparison with the reference, in numbers.

Where in the flow: beside the embedder, which it looks at from outside; `nomicbert verify` prints
what it finds. `run` is the whole of it; the reference is transformers where that reads the
checkpoint as it is meant (`references`), else the formula written out (`oracle`).
"""
