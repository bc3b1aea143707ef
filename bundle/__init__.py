"""From the checkout to what Kaggle takes: the inliner, the wheels and their lock, the dry run, metadata, members."""
