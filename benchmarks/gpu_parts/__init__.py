"""Sections of benchmarks/gpu.py. They yield records, so that an interrupted one keeps its
results."""
