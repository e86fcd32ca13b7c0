"""The networks. They know tensors only: nothing of files, ranks or screens."""
