"""The ground floor: what a pruned run is, on torch and NumPy alone. Nothing here imports Lightning."""
