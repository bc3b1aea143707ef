"""Synthetic phase-contrast images with their cells."""
