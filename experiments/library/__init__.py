"""Folders of videos: what `watch`, `label` and `find` have in common."""
