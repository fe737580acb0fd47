"""Tests of the GGUF file and the Modelfile."""
