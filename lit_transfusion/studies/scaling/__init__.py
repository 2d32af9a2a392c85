"""A scaling comparison: its runs, the laws that are fitted to their points, and its report."""
