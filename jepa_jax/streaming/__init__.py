"""Watching a stream: S^_Y of a sliding window, and a text only where the meaning changes."""
