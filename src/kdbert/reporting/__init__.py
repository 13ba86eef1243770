"""What a run leaves for people: predictions, tables, the model card."""
