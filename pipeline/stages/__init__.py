"""The stages of a run, one module each; :mod:`pipeline.plan` puts them in order."""
