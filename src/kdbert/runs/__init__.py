"""A recipe becomes a run folder; a run folder answers."""
