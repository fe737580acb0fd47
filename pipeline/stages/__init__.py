"""The stages of a run, one module each; :mod:`pipeline.running.planner` puts them in order."""
