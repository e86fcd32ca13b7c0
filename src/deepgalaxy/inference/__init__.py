"""From a picture to its story."""
