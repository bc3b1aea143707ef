"""The detectors: built from configurations, loaded from checkpoints, run stage by stage."""
