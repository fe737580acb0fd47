"""Looks at a recipe and its model before any work: what cannot work, and what is worth knowing."""
