"""Files, locks and checksums. This room knows nothing of runs or recipes."""
