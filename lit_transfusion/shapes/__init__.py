"""The synthetic data of coloured shapes: scenes, captions, edits, and a scorer that reads pictures."""
