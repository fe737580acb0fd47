"""EleutherAI's lm-eval over the source, the checkpoint or a served endpoint.

lm-eval lives in an environment of its own (``scripts/install-eval``), because what it brings breaks
ModelOpt. ``launch`` runs here and starts ``__main__`` there.
"""
