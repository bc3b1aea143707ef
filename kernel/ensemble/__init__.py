"""The ensemble: views, the averages of proposals, boxes and masks over members, and the fallbacks of an image."""
