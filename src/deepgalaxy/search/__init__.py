"""Look-alikes among the simulated encounters."""
