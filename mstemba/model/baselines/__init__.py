"""Networks of other authors, for comparison with MS-Temba on the same features.

Nothing is imported here; ``mstemba.model.architectures`` builds every network.
"""
