"""The stages `detect` and `export`: scores, segments, result files."""
