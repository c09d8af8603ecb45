"""Metrics and pictures: numpy in, numbers and uint8 arrays out."""
