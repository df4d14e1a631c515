"""Plain decoding against DSpark: prompts, interleaved runs, verdict and report."""
