"""Quantization with NVIDIA ModelOpt: load, calibrate, export.

Works around ModelOpt's silent bugs; each workaround is explained where it is.
"""
