"""Decides which stages run, and runs them."""
