"""The selective scan: its operations, its backends, and the one that is taken."""
