"""The reference: each operation in plain torch, to be read beside the paper."""
