"""The commands: parse, call, print. :mod:`pipeline.cli.main` puts them together."""
