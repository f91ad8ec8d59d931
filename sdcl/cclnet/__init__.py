"""CCLNet: unsupervised visible-infrared person re-identification that starts from CLIP (docs/cclnet.md)."""
