"""Serving for as long as it is wanted: the log, what is said meanwhile, and how it ends."""
