"""The most that a workload may take by the model of `inspect --loops`, in microseconds on a 4090 and an H100, and why.

A test fails when a loop grows past it. Five per cent of room: versions of Triton order instructions in their own ways.
A kernel that has become leaner lowers its row.
"""

BUDGETS: dict[tuple[str, int], tuple[float, str]] = {
    (name, arch): (microseconds, reason)
    for name, ada, hopper, reason in (
        ("recombined_attention T2 B32 N442", 257, 77, "tensor cores; on sm_90 issue: 519 instructions per 64 keys"),
        ("recombined_attention T3 B2 N442", 38.3, 13.3, "two tiles of rows on 40 of 128 SMs: 96 HMMA x 14 x 2"),
        ("recombined_attention T3 B32 N442", 383, 120, "tensor cores; on sm_90 507 instructions per 32 keys"),
        ("affinity_attention B2 N1764 from 441", 77.6, 56.0, "L2: P, and values; a program folds its own rows"),
        ("affinity_attention B2 N1764 from 1764", 128, 57.5, "L2 and tensor cores"),
        ("classify_pixels VOC, Q46", 7.7, 10.5, "issue: 21 instructions a pixel and word; 2 of the launch"),
        ("classify_pixels ADE20K, Q150", 35.4, 51.8, "issue: 21 instructions a pixel and word"),
        ("merge_masks Cityscapes, R60", 58.4, 73.4, "memory; sm_90 issue: live regions, ends of classes"),
        (
            "spatial_entropy B14 C768 N1764",
            54.3,
            33.8,
            "two passes in the launch that reads memory, one from L2; on sm_90 issue: 24 instructions an element",
        ),
        (
            "components label and measure 1024x2048",
            41.4,
            39.9,
            "14 of seven launches; memory on sm_89, integers of runs, numbers and measure on sm_90",
        ),
    )
    for arch, microseconds in ((89, ada), (90, hopper))
}
