"""Windows of a picture become features, before any word is known.

In: uint8 [3,H,W], the models, a method. Out: `Encoded`. No decision, no refinement and no published method is imported
here: what a method changes comes through `hooks`.
"""
