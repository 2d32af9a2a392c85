"""The commands that need no trainer. Nothing but `cli.py` imports them."""
