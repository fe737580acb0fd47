"""Drives ``trtllm-build`` and holds its engine against the plan."""
