"""Check on this machine that a checkpoint gives the same results as a reference.

Where in the flow: outside the embedder, which it calls like any user; `nomicbert verify` prints the
report. `run` is the entry point. The reference is transformers if it reads the checkpoint correctly
(`references`), else an independent forward pass (`oracle`).
"""
