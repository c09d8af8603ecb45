"""Output for people: tables, charts and pictures, the report of a run, and its comparison with a reference."""
