"""Plain decoding beside DSpark: prompts, interleaved runs, verdict and report."""
