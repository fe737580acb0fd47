"""The commands: parse, call, print. :mod:`pipeline.cli` puts them together."""
