"""What a segmented picture is, and how it is shown and written.

In: labels, confidence, names. Out: `Result`, files. No model and no method is imported here.
"""
