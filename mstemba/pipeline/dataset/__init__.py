"""Features and manifest to labelled clips."""
