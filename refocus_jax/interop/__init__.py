"""Official VAR checkpoints in and out, as pure functions on dicts of arrays."""
