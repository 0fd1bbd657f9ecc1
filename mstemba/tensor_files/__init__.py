"""Files of tensors, recognised by their content and read without ever running code from a file."""
