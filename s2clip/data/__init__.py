"""Class names, prompts, palettes and the embedded weights."""
