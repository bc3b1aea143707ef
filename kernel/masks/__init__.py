"""Masks as crops of their image, and as run lengths."""
