"""Compiled kernels for CPUs: how they are run together, and matrix products. Importing this imports nothing."""
