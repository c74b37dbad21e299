"""How domains are treated, one file each."""
