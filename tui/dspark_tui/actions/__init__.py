"""What the user does in the chat, by what it is done to; each function is given the screen."""
