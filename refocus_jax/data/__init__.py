"""Image sources, the batches cut from them, and the cache of their tokens."""
