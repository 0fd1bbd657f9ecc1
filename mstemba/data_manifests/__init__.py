"""What the videos are and what happens in them: the manifest and the annotation files it is made from."""
