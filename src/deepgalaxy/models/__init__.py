"""The networks, and their weights in a file. They know nothing of ranks or screens."""
