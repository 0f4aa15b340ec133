"""The HTTP service: batches questions about pictures, runs pruned models, reports what each answer cost."""
