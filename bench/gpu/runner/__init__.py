"""Runs cases in child processes with deadlines, and notes how each began and ended.

`ledger` is the file of what was begun and how it ended, `supervise` the parent, which never touches
a GPU, `child` what it starts: the cases of one stage, one after the other. A case that crashes,
hangs or breaks the device costs itself and no other.
"""
