"""Networks as flax.linen modules and pure functions of their parameters. No input or output."""
