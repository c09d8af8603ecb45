"""Image sources, the readers of image files, batches of crops, and the token cache for stage 2.

Everything that turns data on disk into arrays for training, evaluation or editing belongs here.
"""
