"""Kernels of the CPU, built by LLVM at first use: weights as stored, rows rounded to 16 bits.

Every operation is a function with a plain torch reference, and bit-identical on every processor,
with any number of threads, and for a row in any batch.
"""
