"""Sampling from the generator, as pure functions: cached decoding, guidance, logit filters and editing."""
