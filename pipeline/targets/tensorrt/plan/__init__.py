"""What ``trtllm-build`` would make of a recipe, and what fits, before a GPU is touched."""
