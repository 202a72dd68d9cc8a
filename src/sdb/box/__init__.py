"""The box: a wrapped classifier, its private part, its files and their signatures. How one is made is in wrapping."""
