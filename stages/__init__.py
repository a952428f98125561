"""The ladder: every rung's module, in order. A file named here is a rung everywhere."""

LADDER = (
    "bigram",
    "stages.self_attention",
    "stages.multi_head",
    "stages.feed_forward",
    "stages.residual",
    "stages.post_norm",
    "stages.pre_norm",
    "gpt",
    "stages.rotary",
    "stages.rms_norm",
    "stages.qk_norm",
    "stages.swiglu",
    "stages.muon",
    "stages.value_residual",
    "stages.modern",
    # beside the ladder: AFTER in each file names the rung that it is compared with
    "stages.previous_token",
    "stages.ablation",
    "stages.averaging",
    "stages.distillation",
)
