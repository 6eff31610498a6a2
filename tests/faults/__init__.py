"""What can go wrong, as a table of cases, and the test that goes through it."""
