"""Ollama: llama.cpp's GGUF file, and the Modelfile that makes a model of it."""
