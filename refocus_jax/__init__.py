"""ReFocus-VAR in JAX: visual autoregressive image generation by next-focus prediction."""

__version__ = "0.1.0"
