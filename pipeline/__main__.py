"""``python -m pipeline`` is the console script."""

from pipeline.cli import main

main()
