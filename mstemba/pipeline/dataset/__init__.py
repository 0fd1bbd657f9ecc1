"""Labelled clips, made from features and a manifest."""
