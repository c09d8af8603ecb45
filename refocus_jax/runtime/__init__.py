"""What a run needs besides its mathematics: devices, checkpoints, metrics and a progress display."""
