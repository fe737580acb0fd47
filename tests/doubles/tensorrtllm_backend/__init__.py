"""A stand-in for Triton's C++ backend ``tensorrtllm``, as strict as the original.

It is written from upstream's sources alone and shares nothing with ``model_repo/`` but the engine.
README.md has the rules, the upstream file of each and its test.
"""
