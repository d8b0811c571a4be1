"""The command line: `cace-fast`."""
