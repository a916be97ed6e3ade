"""What medvid promises about every plugin, one file for each kind of thing it offers, one test for each promise.

The docstring of a test is the promise.
"""
