"""Answers: found, normalised, compared, clustered and judged, for mathematics and for code."""
