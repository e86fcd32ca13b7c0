"""From the parameters of an encounter to its snapshots."""
