"""Tuning: scales and norms of a decided mix learn from the full-precision model; codes stay.

In: packed matrices, and the teacher on calibration text. Out: other scales and norms for them, or
none where that did not help.
"""
