"""Files in which other programs keep an image's masks: a module a format, and a table of them all in `forms`."""
