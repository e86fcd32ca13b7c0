"""Training: what is optimised, how, and on how many workers."""
