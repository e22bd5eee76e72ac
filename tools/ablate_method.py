"""What the choices of s2clip-source are worth on scenes, one at a time: `python tools/ablate_method.py [--limit 48]`.

Prints the table of docs/scenes.md, on other scenes than its method table. `settle_method.py` settles s2clip by more.
"""

import argparse

from s2clip import Segmenter
from s2clip.backbones.clip import load_clip
from s2clip.backbones.vfm import load_vfm
from s2clip.evaluation.scenes import evaluate
from s2clip.methods.recipe import RECIPES
from s2clip.published.catalogue import METHODS, get_method

WITHOUT_LEVELS = {"levels": (), "mu": 0.0}
VARIANTS = (
    ("nothing changed", {}),
    ("no affinity at the end (λ none)", {"vfm_weight": None}),
    ("no levels, no affinity: recombination alone", {**WITHOUT_LEVELS, "vfm_weight": None}),
    ("no levels, DINO affinity alone (λ 1)", {**WITHOUT_LEVELS, "vfm_weight": 1.0}),
    ("the same, DINO's windows not enlarged", {**WITHOUT_LEVELS, "vfm_weight": 1.0, "vfm_scale": 1.0}),
    ("the same, ProxyCLIP's γ 3 too", {**WITHOUT_LEVELS, "vfm_weight": 1.0, "vfm_scale": 1.0, "gamma": 3.0}),
    ("DINO's windows not enlarged", {"vfm_scale": 1.0}),
    ("DINO's windows twice as large", {"vfm_scale": 2.0}),
    ("terms qq+kk+vv", {"terms": ("qq", "kk", "vv")}),
    ("terms qq+kk", {"terms": ("qq", "kk")}),
    ("terms qq", {"terms": ("qq",)}),
    ("terms kk", {"terms": ("kk",)}),
    ("terms vv", {"terms": ("vv",)}),
    ("terms qk", {"terms": ("qk",)}),
    ("M = Σ ω X_l (`progressive=False`)", {"progressive": False}),
    ("μ 0", {"mu": 0.0}),
    ("μ 0.5", {"mu": 0.5}),
    ("μ 2", {"mu": 2.0}),
    ("τ 0.1", {"tau": 0.1}),
    ("τ 10", {"tau": 10.0}),
    ("λ 0.25", {"vfm_weight": 0.25}),
    ("λ 0.75", {"vfm_weight": 0.75}),
    ("λ 1", {"vfm_weight": 1.0}),
    ("γ 3", {"gamma": 3.0}),
    ("γ 6", {"gamma": 6.0}),
    ("γ 10", {"gamma": 10.0}),
    ("γ 20", {"gamma": 20.0}),
    ("β 0.8", {"beta": 0.8}),
    ("β 1.6", {"beta": 1.6}),
    ("short side 96", {"short_side": 96}),
    ("short side 128", {"short_side": 128}),
    ("short side 192", {"short_side": 192}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=300, help="first scene")
    parser.add_argument("--limit", type=int, default=48, help="number of scenes")
    arguments = parser.parse_args()
    clip, vfm = load_clip("tiny"), load_vfm("tiny-dino")
    shipped = RECIPES["tiny"].adapt(METHODS["s2clip-source"])
    seeds = range(arguments.first, arguments.first + arguments.limit)
    print("| s2clip-source with | mIoU |\n|---|---|")
    for name, fields in VARIANTS:
        segmenter = Segmenter(clip, vfm=vfm, method=get_method(shipped, **fields))
        print(f"| {name} | {evaluate([segmenter], seeds)[0]['miou']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
