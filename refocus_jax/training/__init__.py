"""The one loop, and the two tasks that plug into it."""
