"""Words and features become labels.

In: `Encoded`, text rows [Q,C], a method. Out: `Decision`: label map, confidence, class scores a few planes at a
time. No refinement and no published method is imported here.
"""
