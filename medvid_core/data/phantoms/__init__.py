"""Synthetic clips drawn on the fly, so that every model trains and is tested with no data at hand."""
