"""A `Segmenter` behind the calls of other people's programs: encoders of a mapper, back ends of labelling tools.

In: a segmenter, and what those programs hand over. Out: what they expect. Nothing here is imported by what lies below.
"""
