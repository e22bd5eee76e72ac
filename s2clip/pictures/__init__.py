"""A source becomes pixels, pixels become windows.

In: paths, PIL images, arrays, tensors. Out: uint8 [3,H,W], label maps, boxes. No model and no method is imported here.
"""
