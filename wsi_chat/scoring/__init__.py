"""Labelled cohorts: fitting a slide score and validating it."""
