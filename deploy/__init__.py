"""How the service is run: containers, Kubernetes, Ray, Prometheus, Grafana."""
