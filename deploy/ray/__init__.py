"""The service as a Ray Serve application: engines as replicas, a gateway that retries what one lost."""
