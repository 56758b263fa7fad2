"""One file a command; the table in cli.py names them. Each has `command`, a click command."""
