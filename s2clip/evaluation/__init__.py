"""How well it segments: benchmarks, metrics, runs that can be resumed and shared out, the source's tables.

In: a `Segmenter`, or other people's label maps; a data set's folder. Out: `report.json` and its table. No command line
is imported here; what is measured is called as users call it.
"""
