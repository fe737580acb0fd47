"""Starting Triton on a repository for GPUs: in the pinned container, or in place inside it."""
