"""The sub-commands of build_kernel.py, a module for each: what it takes, what it calls, what it prints."""
