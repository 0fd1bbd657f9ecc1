"""MS-Temba: configuration, selective scan, network, losses and checkpoints.

Nothing is imported here, so that ``mstemba.model.config`` can be read without torch.
"""
