"""Run cases in child processes with deadlines, and record how each began and ended.

`ledger` is the file of these records. `supervise` is the parent process, which never touches a GPU.
`child` is the process it starts for a stage, whose cases run one after the other. A case that
crashes, hangs or breaks the device does not affect the others.
"""
