"""From pictures with captions, in whatever they come, to a folder of shards."""
