"""Seeded requests, right and wrong ones, against the real server, each judged by rules of its own.

``python -m tests.fuzz`` (``make fuzz``) is the long run. What a request deserves is decided by
:mod:`tests.fuzz.oracle` from the request alone, by the rules that docs/clients.md and
docs/sampling.md tell users; it shares no code with the models that it judges.
"""
