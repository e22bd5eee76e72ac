"""The catalogue of methods, and those that do more than the fields of `s2clip.methods.Method` can say.

In: what the steps know. Out: `METHODS`, `get_method`, and `extension.Extension`, the seam for methods with hooks of
their own. The steps (encoding, decision, refinement) never import it: they are handed a method.
"""
