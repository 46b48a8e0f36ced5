"""Measuring what the models hear and say."""
