"""The `dsm` command, the Prefect flows and the calls of DVC: when and in what order the steps run. No tensors."""
