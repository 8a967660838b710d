"""The engine process, its supervisor, and the client that HTTP workers reach it through."""
