"""Readers of annotation files, one module a family of formats."""
