"""The drawn world: scenes of coloured shapes, their captions and edits, and the scorer that reads them back."""
