"""Where examples come from and how they become batches: files -> examples -> encoded -> batches."""
