"""Kernels of the CPU, built by LLVM at first use: weights as stored, rows rounded to 8 bits.

Every operation is a function beside its plain torch reference, and the same to the bit on every
processor, with any number of threads, for a row in any company.
"""
