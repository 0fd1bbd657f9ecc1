"""What the videos are and what happens in them: the manifest, and reading annotation files."""
