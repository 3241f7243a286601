"""Reading documents: what type a file is, and its text. Parsers run in a guarded child process only."""
