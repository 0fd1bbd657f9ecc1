"""A fuzz suite: damaged and hostile inputs of every kind; see `python -m tests.fuzz --help`."""
