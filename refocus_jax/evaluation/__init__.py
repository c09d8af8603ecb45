"""Metrics, features and instruments: images and tokens in, numbers out."""
