"""Triton kernels and their PyTorch references; imports nothing at package level."""
