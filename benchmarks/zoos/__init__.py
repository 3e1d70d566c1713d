"""Demo zoos: small real models to merge, trained here from data that needs no download."""
