"""The commands that need no trainer. Only `cli.py` imports them."""
