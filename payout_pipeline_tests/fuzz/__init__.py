"""Fuzz targets: the places where bytes from outside come in, each with what must hold for whatever they are."""
