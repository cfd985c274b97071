"""Explore trained models by hand: kept weights, pictures of masked images, and a widget for notebooks and web pages."""
