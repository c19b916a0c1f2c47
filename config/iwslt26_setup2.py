"""IWSLT 2026, setup 2: C with a higher rate for LoRA (section 6.1). Shares A and B with iwslt26."""
base = "iwslt26"
common = dict(systems="C-setup2:merged-setup2")
merge_sft = dict(lr_lora=5e-5, out="merged-setup2")
