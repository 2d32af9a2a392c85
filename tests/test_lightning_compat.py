"""What breaks when a private name of Lightning or jsonargparse is gone: one test for each use of one.

Private names are in lightning_compat.py. The tests at the end are of private methods that our subclasses override, and
of what Lightning does without documenting it.
"""
