"""Frozen, pretrained networks that judge images: feature extractors for metrics and for the perceptual loss."""
