"""A run over many images: workers for the devices, the time budget, memory, failures, results, wheels."""
