# cython: language_level=3
"""Rings between processes."""
