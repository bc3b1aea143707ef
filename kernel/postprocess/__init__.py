"""From soft masks to the rows of submission.csv, and to outlines and pictures."""
