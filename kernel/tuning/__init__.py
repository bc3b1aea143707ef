"""What is chosen by measurement: thresholds, settings of the stages, members; with its evidence."""
