"""Models and tokenizers: where they come from, how a student is cut, whose labels mean what."""
