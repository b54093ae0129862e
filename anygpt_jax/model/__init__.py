"""The decoder: its sizes, its layers, its attention and its loss."""
