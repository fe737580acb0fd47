"""Runs an engine where it was built: its first tokens, and its perplexity."""
