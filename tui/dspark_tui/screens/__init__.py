"""Screens, one file each, with the style sheet next to it."""
