"""The pipelines: load, scan, repair, evaluate.

They live in a package of their own so that ``goodnet.scan`` is the function and nothing else.
"""
