"""When and in what order the steps run: the `dsm` command, the Prefect flow, the door to DVC. No tensors here."""
