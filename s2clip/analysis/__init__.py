"""Why it works, on your own pictures: spatial entropy, semantic consistency, separability, and features to look at.

    entropy.py        how evenly each layer's channels spread over the positions     (Algorithm 1, Figure 4)
    consistency.py    do like patches look alike: average precision of patch pairs   (Figure 3)
    separability.py   how tight classes are, and how far apart                       (Figure 7)
    views.py          any layer, recombination, backbone or method as a map          (Figure 6)
    stages.py         a class's heat map before and after each stage of a method     (Figure 6)
    failures.py       the pictures with the lowest mIoU, and the confusions          (Figure 2)
    plots/            their figures on matplotlib Axes; the rest needs no matplotlib

Figures and algorithms are those of the S2CLIP paper. `s2clip analyze` runs all of it from the command line.

In: a `Segmenter` or a backbone, and pictures. Out: numbers, arrays and figures. No command line is imported here.
"""
