"""What a pruned forward costs in time and memory, measured on the machine at hand."""
