"""What people look at: pictures, tables and charts, the report of a run, and its comparison with a reference."""
