"""The chat: one backend, two front ends (a Textual screen and a plain loop). Importing is light."""
