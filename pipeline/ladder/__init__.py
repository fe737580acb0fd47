"""The same model in several formats: built, measured side by side, and one of them recommended."""
