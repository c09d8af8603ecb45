"""What a job needs of machines that are not here: compiled ahead of time for them, counted and laid out in a table."""
