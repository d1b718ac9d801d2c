"""Runs cases in child processes with deadlines, and records how each began and ended.

`ledger` is the file of what was begun and how it ended. `supervise` is the parent, which never
touches a GPU. `child` is what it starts: the cases of one stage, one after the other. A case that
crashes, hangs or breaks the device costs itself and no other.
"""
