"""SAM after the coarse map: every region becomes a prompt, and SAM's masks are merged back into a label map.

    settings.py   `Refinement`: thresholds and ablation switches     refiner.py    SAM loaded, its embeddings, a way
    prompts.py    coarse map → regions → boxes, points, masks        decoder.py    prompts → low-resolution mask logits
    sam.py        all regions at once, on our ops                    trident.py    per class, as published
    diffusion.py  Stable Diffusion's affinity before SAM             results.py    coarse results → refined ones
    memory.py     what the stage needs at most                       automatic.py  SAM's masks without any map

In: a picture's pixels, `Decision`. Out: `Refined`. No published method and no segmenter is imported here.
"""
