"""The autoregressive loop as pure functions: filters, guidance and cached decoding."""
