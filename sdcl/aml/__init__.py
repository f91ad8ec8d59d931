"""AML, asymmetric mutual learning (method page of AML, docs/aml.md): two ResNet-50 learn from source images with
pseudo-labels and generated infrared partners (stage 1), then from clusters of unlabelled target images (stage 2).

- `network`, `weights`: images → features; files of weights.
- `views`: what each network sees of a batch.
- `losses`: all losses of a step of either stage, from features.
- `labels`: test features of the target → labels shared by both modalities, and the memories' centres.
- `sampler`, `schedule`: batches; optimiser and the rate of each step.
"""
