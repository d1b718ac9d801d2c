"""Tunes launch settings by measuring them on this machine's GPU; called by `nomicbert tune`.

`problems` lists the kernel calls to measure, `candidates` the settings to try for each, `search`
checks and times them, and `tables` writes the faster settings to the table that `launch` reads
before the shipped rows. Nothing here runs implicitly: a model's results depend on a file that can
be inspected, not on timings of its first batch.
"""
