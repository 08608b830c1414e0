"""A run, stage by stage, from the recipe to the written directory."""
