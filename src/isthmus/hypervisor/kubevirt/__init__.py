"""KubeVirt: a level as a virtual machine's CPU and its nodes' labels."""
