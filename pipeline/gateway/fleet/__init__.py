"""Several servers as one engine: which of them answers, and what becomes of one that is lost."""
