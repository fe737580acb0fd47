"""A first recipe for a model, from its ``config.json`` alone."""
