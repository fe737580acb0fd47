"""The target llamacpp: a GGUF file, and llama.cpp's own server."""
