"""The stages of a run, one module each; :mod:`pipeline.planner` puts them in order."""
