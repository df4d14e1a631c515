"""Widgets of the chat screen: data comes down by reactives, messages go up."""
