"""The command `prepare`: it converts captioned pictures from several formats to a folder of shards."""
