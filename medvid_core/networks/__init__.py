"""Baselines that come with core."""
