"""What a run is told: the recipe's keys, their meaning, and the file they come from."""
