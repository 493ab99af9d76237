"""The control plane's side of the host agents: sealed orders down, verified reports up."""
