"""Recipes: the only rooms that compose others. Each module is one verb, read from top to bottom.

Nothing is imported here, because the settings are read before PyTorch is needed.
"""
