"""What fills the terminal, one file per screen with its style sheet beside it."""
