"""Class names become unit vectors.

In: "sky, house; hut, tree". Out: `Vocabulary` and text rows [Q,C], kept in memory and on disk. No picture and no method
is imported here.
"""
