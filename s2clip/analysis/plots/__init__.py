"""Figures of the analyses: functions that draw on given matplotlib Axes, and whole figures made of them.

Colours are told apart with the common colour-vision deficiencies and in grey print: Paul Tol's for lines and bars, with
markers and hatching beside them, cividis for heat. matplotlib's settings and pyplot's state are left alone.

In: what the analyses found. Out: `Axes` and `Figure`. No model is imported here, and nothing else imports matplotlib.
"""
