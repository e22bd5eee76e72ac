"""SAM after the coarse map: every region becomes a prompt, and SAM's masks are merged back into a label map.

settings.py   `Refinement`: thresholds and ablation switches      scores.py    class scores, a few planes at a time
prompts.py    coarse map → regions → boxes, points, masks         decoder.py   prompts → low-resolution mask logits
sam.py        all regions at once, on our ops                     trident.py   per class, as published: the baseline
refiner.py    SAM loaded, its embeddings, one of both applied     results.py    coarse results → refined ones
memory.py     what the stage needs at most                        automatic.py  SAM's masks of a picture without any map
"""
