"""Backbones that turn frames into features: one file a family, listed in `registry`."""
