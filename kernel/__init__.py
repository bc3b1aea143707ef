"""Cell instance segmentation by detectors that are averaged inside the network.

What `kernel.main` reaches is inlined into one offline Kaggle script. Each package imports from those below it alone:
the contract is in pyproject.toml, and docs/architecture.md shows the packages and walks one image through the files.
"""
