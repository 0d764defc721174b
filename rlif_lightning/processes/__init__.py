"""Processes and data ranks, and the collectives between them."""
