"""Support for runs: devices, processes, checkpoints, weight files, metrics, leases and progress display."""
