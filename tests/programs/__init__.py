"""Twenty small programs as users write them; `test_programs.py` runs each for real. The type checkers read them too."""
