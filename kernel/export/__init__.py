"""Masks of a folder of images as files that other programs open: label images, outlines, a table, pictures."""
