"""Tiny data sets in the exact layouts of the published ones, written by the tests that need them."""
