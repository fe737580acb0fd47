"""What ``scripts/gpu-check`` runs: each part is a module with ``cases(task)``, run in a process.

A part yields cases one after the other, so that one that is cut off leaves those before it.
"""
