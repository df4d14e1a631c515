"""DeepSeek-V4's operations on a card, with the bits of the CPU's native program.

Every sum is made in the order that the CPU's texts state (cpu/deepseek_v4, cpu/float_matrix), with
operations that round correctly, and kernels are compiled without fusing products and sums on their
own: what a layer computes does not depend on where. The CPU's program and the torch modules are the
references.
"""
