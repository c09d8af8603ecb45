"""Training: one loop for both stages, the task of each stage, and what they need (optimizer, evaluators, tokens)."""
