"""Features on disk: their specification, stores of them, and when their rows are."""
