"""What is measured, and how. Each benchmark prints a table for people and, as its last line, one JSON object."""
