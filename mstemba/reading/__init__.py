"""The gate for everything read from disk: kinds and sizes of files, typed JSON and TOML, arrays."""
