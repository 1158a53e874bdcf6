"""What a run will take, before it: time by stages, memory, disk.

In: a checkpoint, planned files, a config, and a work directory that may hold something already.
Out: a :class:`.estimate.Forecast`, whose stages :meth:`bitquilt.runtime.progress.Progress.job`
shows.

    work.py        what there is to do: passes over text, matrices to round, files to write
    machine.py     how fast this machine does it, measured in a fraction of a second
    stages.py      the seconds of every stage
    memory.py      the bytes that are in memory at once
    disk.py        the bytes that are written, and whether there is room for them
    time_limit.py  how much text a run reads, so that it keeps to --time
    estimate.py    all of it, and the sentences that say it
"""
