"""What every stage reads and writes with: files, cache keys, locks."""
