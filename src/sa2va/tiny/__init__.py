"""The drawn world and the `tiny` model: data, random weights, training stages and benchmarks that need no files.

Everything here imports the rest of the package; the rest knows it only by the names in its registries.
"""
