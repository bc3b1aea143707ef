"""Cell instance segmentation by detectors that are averaged inside the network.

What `kernel.main` reaches is inlined into one offline Kaggle script; `kernel.training` and
`kernel.validation` are not.
"""
