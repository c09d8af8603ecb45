"""Measurements of images and tokens: sets of images, references, distances, other metrics, and the tables of results.

Code that draws samples to disk and that stores measurements for later runs belongs here too.
"""
