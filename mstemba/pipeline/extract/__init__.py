"""The stage `extract`: videos to features, on this machine or on a Ray cluster."""
