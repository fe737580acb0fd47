"""Says whether a run is good enough: its quality gates, and why it ended early."""
