"""A simulated cluster: the operator's real code against an API server, a Job controller and kubelets in memory."""
