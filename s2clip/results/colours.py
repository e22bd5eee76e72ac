"""The colour of each class id, one palette for the overlay, the label PNG and classes.json."""

import functools

import numpy as np

# Chosen by tools/palette.py so that any first n are far apart for normal and for colour-blind eyes: the smallest
# distance in CAM02-UCS under full protanopia, deuteranopia, tritanopia or none is 14.9 among the first 13, 7.9 among
# 40 and 2.8 among all 255, where about 1 is just seen.
_TABLE = """
    4477aa ccbb44 6c4c00 99bfff 1a394c c6666c 6000ac 601320 9f8c00 b9f99f 9986ff ff93ac 994053 732dff f2ec1a
    465379 4c9fbf 79ecf9 79732d 996079 9fac6c acd286 530673 f9b2d2 c68099 6c4cb2 793333 593300 59c6b2 806cf9
    ccdf66 ff66cc ec264c f96c46 206c66 86a6e6 9fffcc b20686 cc3999 4c9379 60602d b953cc 80b28c cc1360 8ce6b2
    2d13e6 790053 e6cc13 796000 d29f00 06d9cc 53336c a6738c 0d5946 a6bf66 591a39 738000 ffccdf 939960 d973ac
    662086 b2c6ec ccf96c 733966 0080cc 8c0620 8cc68c 264c1a ac6653 8c2d4c 607999 869f39 8c5366 f22d86 b2e686
    6c4c93 8646d2 6639a6 b9ecec 7999ac 667340 9999ff c6cc66 b946b2 99b2df a6d9c6 790633 dfacbf 8c79ec 2d7973
    46b2c6 a6392d 992040 7999d9 86b2ff b24686 b29379 7906c6 bf3973 93f9ff 66060d 609f99 f9ac9f 6cb2a6 79ac53
    dfac13 d9df46 a6ec9f 7359f2 c65900 c6ac46 803959 598c33 cc4cac 8cf2cc d28c9f a61320 662640 466c99 9fd9ff
    8680b9 d2cc4c 790d66 868ce6 ac7959 532046 a6b9d9 f97386 b92053 33ffb2 861359 806cbf 933379 209f86 802693
    a6ff86 460099 d9ac80 6c3900 dfbf20 d24c2d 40601a b99320 736040 93d2df 866cdf 590660 f979c6 80acb9 df9359
    6ca6d2 bf2d20 bf5966 608040 80dfd9 79c6bf 3933ec dfcca6 26ac73 a6e6ec 73a68c df93ac 66334c 8033cc 99934c
    1ac6ec 79466c d9ecb9 990033 0d4059 66c679 d2999f d9a6ec 004080 eca660 7353a6 398c9f 1300c6 80d2ff 66d2b2
    a6668c b22099 6c2d13 467960 734c86 538c6c 0d4026 cc5979 cc99b9 609393 df13df 80bf93 d266a6 ec4699 064c33
    869333 0d8080 8c1a40 600640 b9c673 e679a6 9f4039 d97386 dfec53 c680b9 b9798c ccec73 93df79 791a73 b2f9df
    b9d2ec b200b9 a6df93 bf3953 662026 398c79 7959c6 9993ec 8c2673 f99339 6c1a13 664686 79b2d2 c68c6c 6620b2
    80002d 9973ff d97306 bf0026 532099 93d9b9 f2bfd2 a679d2 4c0686 99cc99 660653 a61359 b9664c eca6cc 997326
    995373 792639 7353b9 7366df 53bf59 df60bf f9594c 136653 8093b2 b2739f ec3959 9f2d06 f28cf2 ace6d2 93f98c
"""
IGNORED = (255, 255, 255)
"""Colour of id 255 of a label PNG: white, which no class has."""


@functools.cache
def _table() -> np.ndarray:
    return np.frombuffer(bytes.fromhex(_TABLE), np.uint8).reshape(-1, 3)


def class_colours(count: int) -> np.ndarray:
    """uint8 [count,3]: RGB of class ids 0 to count-1. After 255 the colours come again: id and id - 255 share one."""
    return _table()[np.arange(count) % len(_table())]


def png_palette() -> bytes:
    """768 bytes, RGB of the values 0 to 255 of a label PNG; 255 is `IGNORED`."""
    return _table().tobytes() + bytes(IGNORED)
