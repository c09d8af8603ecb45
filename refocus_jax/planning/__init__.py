"""Estimates of what a run needs on machines that are not present: programs compiled ahead of time, and FLOPs."""
