"""llama.cpp: a GGUF file made of the stored checkpoint."""
