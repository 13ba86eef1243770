"""Many runs: a grid of recipes, and running what is missing of it."""
