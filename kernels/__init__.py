"""Triton kernels and their PyTorch references; imports nothing at package level.

In: tensors that `s2clip.ops` has checked. Out: tensors. Nothing of s2clip is imported here, no
kernel by the reference and no reference by a kernel.
"""
