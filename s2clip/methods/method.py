"""The methods as values: what a paper changes in CLIP's last block, its windows and its decision.

One code path computes them all (`s2clip.encoding.features`). Per window, with X_l the tokens after block l of L,

    R(X) = W_o · Σ_t w_t A_t V  [+ X]  [then + FFN(LN2 ·)]      q, k, v of LN1(X); no terms: A = identity
    F    = R(X_{L-1}) + μ R(M)                                  M = Σ_l ω_l T_l over the levels, ω = softmax(-H_l / τ)
    F    = affinity of λ·VFM and (1-λ)·ω·levels, applied to F   when `vfm_weight` is given
    z    = LN_post(F) P,   cos(z, text)

and per picture windows, averaging, softmax with the logit scale, and the choice of a class. What differs is here; what
does not fit this formula is a method's `extension`, from the package `s2clip.published`, which lists the methods, too.
"""

import math
from dataclasses import dataclass

from s2clip.errors import reject
from s2clip.methods.needs import Needs
from s2clip.methods.stages import FIELDS, KeyRotation, Propagation, Purification, TemplateChoice
from s2clip.values import is_real, is_whole

TERMS = tuple(x + y for x in "qkv" for y in "qkv")
MERGES = ("splice", "pixel")
TEMPLATES = ("imagenet80", "imagenet85", "cliper15", "plain")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method. Symbols in brackets are those of the paper named in `source`; `dataclasses.replace` gives ablations.

    Raises `ValueError` naming the field, what it may be and what it was.
    """

    name: str
    source: str

    # Last block.
    terms: tuple[str, ...] = ("qq", "kk", "vv")
    """Attention terms "xy", x and y among q, k, v: softmax(x yᵀ/√d). Up to four; () is the identity: values alone."""
    weights: tuple[float, ...] | None = None
    """One weight per term [w_t]; None: 1/number of terms. SCLIP's (1, 1) makes rows sum to 2."""
    residual: bool = False
    """Add the block's input to the attention's output."""
    feed_forward: bool = False
    """Run the block's FFN (with its own residual) afterwards."""
    cls_token: bool = True
    """The CLS token takes part in the last block as query, key and value; it is dropped afterwards either way."""
    gaussian_sigma: float | None = None
    """[σ] patches, > 0: exp(-d²/2σ²) is added to the scores of two patches d apart (NACLIP); None: nothing added."""

    # Levels: intermediate blocks weighted by spatial entropy.
    levels: str | tuple[int, ...] = ()
    """Blocks l whose output X_l is used, 1..L-1; "middle" is ⌈L/3⌉..L-2 (4..10 of 12); (): none."""
    tau: float = 1.0
    """[τ] nats, > 0: temperature of the level weights softmax(-H_l/τ); large: equal weights."""
    mu: float = 1.0
    """[μ] >= 0: weight of the hierarchical tokens' recombination beside that of X_{L-1}."""
    progressive: bool = True
    """Smooth each level by the affinity of the levels up to it, shallow to deep; False: M = Σ ω_l X_l."""

    # Affinity that aggregates the patch features.
    vfm_weight: float | None = None
    """[λ] 0..1: share of the vision foundation model in the affinity, the rest is the levels'; None: no aggregation."""
    vfm_scale: float = 1.0
    """> 0: the VFM sees each window enlarged by this (bilinear), for a finer grid than its patches give."""
    beta: float = 1.2
    """[β] similarities below β times the window's mean are cut (ProxyCLIP)."""
    gamma: float = 3.0
    """[γ] > 0: sharpness of the affinity's softmax (ProxyCLIP)."""

    # Picture and windows.
    short_side: int | None = 336
    """Pixels the shorter side is resized to, keeping the ratio; None: native size."""
    long_side: int | None = 2048
    """Pixels the longer side may not exceed after resizing, even if the shorter gets less; None: no limit."""
    antialias: bool = False
    """Low-pass before shrinking. Off, as the peers' resize."""
    round_pixels: bool = False
    """Round the resized picture to whole levels of 0..255, as image libraries that resize uint8 do, and so the peers'
    published evaluation. Off: what the interpolation gives."""
    crop: int | None = 336
    """Pixels of a square window; None: the whole picture at once."""
    stride: int = 112
    """Pixels between windows, 1..crop; the last one is moved back to the border."""
    merge: str = "splice"
    """Overlaps: "splice" averages features on the patch grid (before LN_post), "pixel" averages upsampled cosines."""
    pad_multiple: int | None = None
    """Pixels that a window's sides are padded to a multiple of, for merge="pixel"; None: the patches', so that every
    patch is whole and none is lost. What is left of a side after its last whole patch is not seen, and the grid of
    patches is stretched over the window: 1 is NACLIP's whole picture, 56 ProxyCLIP's and CorrCLIP's windows."""

    # Text and decision.
    templates: str | tuple[str, ...] = "imagenet80"
    """Prompt templates: "imagenet80" (OpenAI's 80), "imagenet85" (and five of a scene; MaskCLIP and CLIPSurgery),
    "cliper15" (CLIPer's 15), "plain" (a photo of a {}.), or your own strings holding {}."""
    logit_scale: float = 40.0
    """[α] > 0: factor of the cosines before the softmax over all words."""
    threshold: float = 0.0
    """[prob_thd] 0..1: pixels whose best probability is lower become background; needs a background class."""
    area_threshold: float | None = None
    """[θ] 0..1: a foreground class with at most this share of the foreground pixels is dropped (SCLIP on VOC21)."""

    pamr_iterations: int = 0
    """[T] >= 0: refinements of the cosines along the picture's edges before the softmax (PAMR); NACLIP publishes 10."""
    pamr_dilations: tuple[int, ...] = (8, 16)
    """[δ] pixels >= 1: how far PAMR's neighbours are apart."""

    key_rotation: KeyRotation | None = None
    """Attention of queries and keys turned towards them, in place of the terms (PEARL's first step)."""
    propagation: Propagation | None = None
    """The cosines flow along the picture before the softmax (PEARL's second step)."""
    purification: Purification | None = None
    """Classes that are not there are dropped before the decision (FreeCP)."""

    template_choice: TemplateChoice | None = None
    """Each class by the templates that are sure of it (FLOSS)."""

    extension: Needs | None = None
    """What the fields above cannot say, with settings of its own: see `s2clip.published.extension`."""

    def __post_init__(self) -> None:
        for field in ("terms", "weights", "levels", "templates", "pamr_dilations"):
            if isinstance(getattr(self, field), list):
                object.__setattr__(self, field, tuple(getattr(self, field)))
        self._check_last_block()
        self._check_levels_and_affinity()
        self._check_picture()
        self._check_decision()
        self._check_stages()
        extension = self.extension
        self._require(extension is None or isinstance(extension, Needs), "extension", "None or an Extension")
        if extension is not None:
            for field, value in extension.requires.items():
                self._require(getattr(self, field) == value, field, f"{value!r} for {extension.kind}")

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            reject(f"Method.{field}", expected, repr(getattr(self, field)))

    def _check_last_block(self) -> None:
        terms, weights = self.terms, self.weights
        known = isinstance(terms, tuple) and all(term in TERMS for term in terms)
        self._require(
            known and len(terms) <= 4 and len(set(terms)) == len(terms),
            "terms",
            f"a tuple of up to 4 different terms among {', '.join(TERMS)}",
        )
        self._require(
            weights is None
            or (isinstance(weights, tuple) and len(weights) == len(terms) and all(map(is_real, weights))),
            "weights",
            f"None or one number for each of the {len(terms)} terms",
        )
        for field in ("residual", "feed_forward", "cls_token", "progressive", "antialias", "round_pixels"):
            self._require(isinstance(getattr(self, field), bool), field, "True or False")
        sigma = self.gaussian_sigma
        self._require(
            sigma is None or (is_real(sigma) and sigma > 0), "gaussian_sigma", "None or a number > 0 (patches)"
        )

    def _check_levels_and_affinity(self) -> None:
        levels, share = self.levels, self.vfm_weight
        self._require(
            levels == "middle"
            or (isinstance(levels, tuple) and all(map(is_whole, levels)) and list(levels) == sorted(set(levels))),
            "levels",
            '"middle" or a tuple of rising block numbers',
        )
        self._require(is_real(self.tau) and self.tau > 0, "tau", "a number > 0")
        self._require(is_real(self.mu) and self.mu >= 0, "mu", "a number >= 0")
        self._require(share is None or (is_real(share) and 0 <= share <= 1), "vfm_weight", "None or a number in 0..1")
        self._require(share in (None, 1) or levels != (), "vfm_weight", "None or 1 where `levels` is empty")
        self._require(is_real(self.vfm_scale) and self.vfm_scale > 0, "vfm_scale", "a number > 0")
        self._require(is_real(self.beta), "beta", "a number")
        self._require(is_real(self.gamma) and self.gamma > 0, "gamma", "a number > 0")

    def _check_picture(self) -> None:
        for field in ("short_side", "long_side", "crop"):
            value = getattr(self, field)
            self._require(
                value is None or (is_whole(value) and value >= 1), field, "None or a whole number >= 1 (pixels)"
            )
        self._require(is_whole(self.stride) and self.stride >= 1, "stride", "a whole number >= 1 (pixels)")
        self._require(
            self.crop is None or self.stride <= self.crop,
            "stride",
            f"at most the crop, {self.crop}: no pixel is missed",
        )
        self._require(self.merge in MERGES, "merge", f"one of {', '.join(MERGES)}")
        multiple = self.pad_multiple
        self._require(
            multiple is None or (is_whole(multiple) and multiple >= 1 and self.merge == "pixel"),
            "pad_multiple",
            "None, or with merge='pixel' a whole number >= 1 (pixels)",
        )

    def _check_decision(self) -> None:
        own = isinstance(self.templates, tuple) and all(isinstance(t, str) and "{}" in t for t in self.templates)
        self._require(
            self.templates in TEMPLATES or (own and self.templates != ()),
            "templates",
            f"one of {', '.join(TEMPLATES)}, or a tuple of strings that hold {{}}",
        )
        self._require(is_real(self.logit_scale) and self.logit_scale > 0, "logit_scale", "a number > 0")
        self._require(is_real(self.threshold) and 0 <= self.threshold <= 1, "threshold", "a number in 0..1")
        iterations, dilations = self.pamr_iterations, self.pamr_dilations
        self._require(is_whole(iterations) and iterations >= 0, "pamr_iterations", "a whole number >= 0")
        apart = isinstance(dilations, tuple) and all(is_whole(dilation) and dilation >= 1 for dilation in dilations)
        self._require(apart and dilations != (), "pamr_dilations", "a tuple of whole numbers >= 1 (pixels)")
        area = self.area_threshold
        self._require(area is None or (is_real(area) and 0 <= area <= 1), "area_threshold", "None or a number in 0..1")

    def _check_stages(self) -> None:
        for field, kind in FIELDS.items():
            value = getattr(self, field)
            self._require(value is None or isinstance(value, kind), field, f"None or a {kind.__name__}")
        turned = self.key_rotation is not None
        self._require(not turned or self.terms != (), "key_rotation", f"None for {self.name}, which has no attention")
        shared = self.purification is None or self.extension is None
        self._require(shared, "purification", f"None for {self.name}, whose windows are its own")
        if self.template_choice is not None:
            self._require(self.extension is None, "template_choice", f"None for {self.name}, whose decision is its own")
            others = (self.propagation, self.purification, self.area_threshold, self.pamr_iterations or None)
            alone = others == (None,) * len(others)
            self._require(alone, "template_choice", "None with propagation, purification, area_threshold or PAMR")

    @property
    def uses_vfm(self) -> bool:
        """Whether a vision foundation model is needed."""
        return bool(self.vfm_weight) or (self.extension is not None and self.extension.needs_vfm)

    @property
    def uses_sam(self) -> bool:
        """Whether SAM is needed, refinement aside."""
        return self.extension is not None and self.extension.needs_sam

    @property
    def uses_diffusion(self) -> bool:
        """Whether Stable Diffusion is needed, refinement aside."""
        return self.extension is not None and self.extension.needs_diffusion

    @property
    def uses_regions(self) -> bool:
        """Whether regions of every picture must be given."""
        return self.extension is not None and self.extension.needs_regions

    @property
    def uses_levels(self) -> bool:
        """Whether any level enters the result."""
        return self.levels != () and (self.mu > 0 or (self.vfm_weight is not None and self.vfm_weight < 1))

    def resolve_levels(self, layers: int) -> tuple[int, ...]:
        """The levels as block numbers for a model of `layers` blocks, of which the last is not a level."""
        if isinstance(self.levels, str):  # "middle"
            first = min(math.ceil(layers / 3), layers - 1)
            return tuple(range(first, max(layers - 2, first) + 1))
        if any(not 0 < level < layers for level in self.levels):
            reject("Method.levels", f"blocks 1..{layers - 1} of a model with {layers}", self.levels)
        return self.levels
