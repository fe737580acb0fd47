"""Quantization with NVIDIA ModelOpt: load, calibrate, export.

ModelOpt's quiet mistakes are undone or refused here; each place says which.
"""
