"""Frozen models behind small adapters, and the files their weights come from.

In: a model's name, or images [B,3,H,W] in [0,1]. Out: CLIP's tokens, vision features [B,h,w,C], SAM's embeddings,
Stable Diffusion's affinity. No method and no step of the pipeline is imported here.
"""
