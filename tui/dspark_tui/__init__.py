"""The Textual front end of the chat. Importing this package is cheap."""
