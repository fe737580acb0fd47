"""What a run takes of a machine, stage by stage: memory, disk and time, told before any work.

Everything follows from ``config.json``, the recipe and the measured rates of the machine; no
weights are read and nothing heavy is imported. All of it is an estimate, and called one.
"""
