"""llama.cpp: a GGUF file made of the stored checkpoint, and its own server."""
