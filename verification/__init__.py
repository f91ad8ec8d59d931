"""Vectors that published implementations computed, and what lays this project beside them (scripts/verify.py)."""
