"""What comes from outside, as bytes: targets that take any, a corpus of them, and campaigns."""
