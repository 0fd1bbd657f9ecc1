"""Video files to timestamped RGB frames, resized while decoding, in a process of its own."""
