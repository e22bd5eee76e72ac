"""The most that a workload may take by the model of `inspect --loops`, in microseconds on a 4090 and an H100, and why.

A test fails when a loop grows past it. Five per cent of room: versions of Triton order instructions in their own ways.
A kernel that has become leaner lowers its row.
"""

BUDGETS: dict[tuple[str, int], tuple[float, str]] = {
    (name, arch): (microseconds, reason)
    for name, ada, hopper, reason in (
        ("recombined_attention T3 B2 N442", 38.3, 14.6, "two tiles of rows on 40 of 128 SMs: 96 HMMA x 14 x 2"),
        ("recombined_attention T3 B32 N442", 383, 134, "tensor cores; on sm_90 593 instructions per 32 keys"),
        ("affinity_attention B2 N1764 from 441", 97.3, 84.5, "L2: 64 x 64 tiles read 196 KB each"),
        ("affinity_attention B2 N1764 from 1764", 143, 107, "L2 and tensor cores"),
        ("classify_pixels ADE20K, Q150", 54.5, 76.3, "issue: 33 instructions a pixel and word"),
        ("merge_masks Cityscapes, R60", 230, 323, "issue: what a live region and the skip test take"),
        (
            "spatial_entropy B14 C768 N1764",
            66,
            38,
            "one pass through memory, then L2 or issue: 23 instructions an element in three passes",
        ),
        ("components label and measure 1024x2048", 110, 95.3, "issue and L2 over ten launches"),
    )
    for arch, microseconds in ((89, ada), (90, hopper))
}
