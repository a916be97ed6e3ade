"""Checks that every plugin has to pass: ``pytest --medvid-plugin DISTRIBUTION``."""
