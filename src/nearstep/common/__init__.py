"""What any room may use: random streams, plugins, messages, errors, the hub."""
