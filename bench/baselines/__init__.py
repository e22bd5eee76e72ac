"""What others run in place of an op or of the pipeline, restated from the papers and their mathematics.

Per op: the published eager formulation, and the best a careful user writes today. Every function takes the arguments of
the public op of `s2clip.ops` and returns what the op returns, so that outputs are compared before anything is timed.
`proxyclip` and `trident` are whole pipelines, on the same backbones and weights as s2clip's.
"""
