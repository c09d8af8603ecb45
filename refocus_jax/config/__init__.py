"""All settings with their ranges and checks, and how models, tasks and runs are built from a config."""
