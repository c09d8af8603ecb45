"""Instruments that measure aliasing and resolution: test patterns, spectra, views, Wiener gains, tokenizer detail."""
