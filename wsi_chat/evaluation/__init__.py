"""Metrics of answers against their labels: `evaluate` reads a file, `score_grounding` and its likes score values."""
