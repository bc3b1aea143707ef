"""Annotated images: read, mended, put into folds, written as prepared data; synthetic cells."""
