"""Run folders as tables, statistics and a page."""
