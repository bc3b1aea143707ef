"""Image files: found in a folder, read by format, brought to 8 bits, written."""
