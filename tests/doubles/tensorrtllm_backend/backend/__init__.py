"""The folder that Triton takes for the backend ``tensorrtllm``; ``model.py`` is its entry."""
