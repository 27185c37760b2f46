"""Learning by doing: exercises with a judge, and a page on which one touches a pixel."""
