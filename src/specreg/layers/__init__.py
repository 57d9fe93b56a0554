"""The bridge from modules to matrices: which weights a class has, how each is read and written, how to find them."""
