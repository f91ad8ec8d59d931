"""A CLIP-shaped network small enough for tests, and weight files as users have them."""

import torch

from sdcl.cclnet.model import CCLNetModel
from sdcl.cclnet.settings import ClipConfig
from sdcl.cclnet.weights import CLIP_PREFIXES

SMALL = ClipConfig(
    image_height=48, image_width=32, width=4, depths=(1, 2, 1, 1), projection=12,
    text_width=16, text_depth=2, text_heads=2,
)  # fmt: skip
VOCABULARY = 49408


def small_model(*classes, config=SMALL, seed=0):
    """A model of random weights in which nothing is zero."""
    torch.manual_seed(seed)
    model = CCLNetModel(config, *classes)
    model.image.initialise()
    model.language.initialise()
    with torch.no_grad():
        for x in [*model.parameters(), *model.buffers()]:
            if x.dtype == torch.float32 and x.ndim == 1:
                x.add_(torch.rand(x.shape) * 0.2)
        model.image.bn.bias.zero_()
    model.image.stem_infrared.load_state_dict(model.image.stem_visible.state_dict())
    return model


def clip_state(model, side=7, seed=5):
    """A CLIP file's tensors, of the visible stem, trunk and text encoder of a model."""
    torch.manual_seed(seed)
    own = model.state_dict()
    prefixes = {k: v for k, v in CLIP_PREFIXES.items() if k != "image.stem_infrared."}
    state = {
        theirs + k.removeprefix(ours): x.clone() for ours, theirs in prefixes.items() for k, x in own.items()
        if k.startswith(ours)
    }
    state["visual.attnpool.positional_embedding"] = torch.randn(1 + side * side, model.config.dim)
    state["token_embedding.weight"] = torch.randn(VOCABULARY, model.config.text_width) * 0.1
    state["logit_scale"] = torch.tensor(4.6)
    return state


def save_torchscript(state, path):
    """As OpenAI's file: weights of convolutions and linear maps in half precision, three integers beside them."""
    root = torch.nn.Module()
    sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": VOCABULARY}
    for name, x in {**state, **{k: torch.tensor(v) for k, v in sizes.items()}}.items():
        *folders, leaf = name.split(".")
        module = root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, torch.nn.Module())
            module = module._modules[folder]
        module.register_buffer(leaf, x.half() if x.ndim > 1 and x.dtype == torch.float32 else x)
    torch.jit.script(root).save(str(path))
