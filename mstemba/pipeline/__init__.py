"""The stages, in the order they run: init, decode, extract, train, evaluate, detect."""
