"""How good an ensemble is: predictions, the competition's metric, quality of masks, folds that members did not see."""
