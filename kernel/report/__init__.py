"""What validation found, as a page to look at in a browser."""
