"""Networks as flax.linen modules and pure functions of their parameters.

Nothing in this room reads or writes files.
"""
