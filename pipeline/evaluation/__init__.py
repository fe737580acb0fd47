"""How far one model's predictions are from another's, on held-out text, and how sure that is."""
