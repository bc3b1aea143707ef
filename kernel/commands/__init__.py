"""The command line, a module per command: what it takes, what it calls, what it prints."""
