"""Class names, prompts, palettes and the embedded weights: files, and the folder they are read from.

In: nothing. Out: YAML, JSON and safetensors. No code of the package is imported here.
"""
