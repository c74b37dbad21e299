"""What the training loop is measured against; other libraries run in an environment of their own."""
