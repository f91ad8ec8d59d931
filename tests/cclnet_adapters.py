"""What `check_cclnet.py` calls: each function of its list, by this project's own."""

import dataclasses

import torch

from sdcl.cclnet.batches import ClusterBatches, steps_of_epoch
from sdcl.cclnet.batches import prompt_batches as make_prompt_batches
from sdcl.cclnet.labels import cluster_modality
from sdcl.cclnet.losses import prompt_loss, step_losses, text_loss
from sdcl.cclnet.memory import MatchedMemories
from sdcl.cclnet.model import CCLNetModel
from sdcl.cclnet.optimizers import contrast_optimizer, prompt_optimizer
from sdcl.cclnet.presets import PRESETS
from sdcl.cclnet.settings import ClipConfig
from sdcl.cclnet.views import TrainingView
from sdcl.cclnet.weights import load_clip as fill_from_clip
from sdcl.cclnet.weights import load_published, published_names, save_published

__all__ = ["prompt_loss", "text_loss"]


# -- network ------------------------------------------------------------------------------------------------------


def build(height, width, *classes):
    return CCLNetModel(ClipConfig(image_height=height, image_width=width), *classes)


def load_checkpoint(path, height, width, device):
    model = build(height, width)
    load_published(model, path)
    return model.to(device)


def save_checkpoint(model, path, epoch, cmc, mAP, mINP):
    save_published(model, path, epoch, cmc, mAP, mINP)


def load_clip(path, height, width, visible_classes, infrared_classes, device):
    model = build(height, width, visible_classes, infrared_classes)
    fill_from_clip(model, path)
    return model.to(device)


def features(model, images, modality):
    return model.image.eval()(**{modality: images}).features


def projections(model, images, modality):
    return model.image.eval()(**{modality: images}, project=True).projections


def contexts(model, modality):
    return model.language.sentences(modality).context


def texts(model, labels, modality):
    return model.language.texts(labels, modality)


def training_forward(
    path, height, width, visible, infrared, weights_features, weights_projections, gradients, statistics
):
    model = load_checkpoint(path, height, width, visible.device).double().train()
    names = {theirs: ours for ours, theirs in published_names(model).items()}
    out = model.image(visible, infrared, project=True)
    ((weights_features * out.features).sum() + (weights_projections * out.projections).sum()).backward()
    parameters, state = dict(model.named_parameters()), model.state_dict()
    return {
        "features": out.features,
        "projections": out.projections,
        "gradients": {k: parameters[names[k]].grad for k in gradients},
        "statistics": {k: state[names[k]] for k in statistics},
    }


# -- losses and memories ------------------------------------------------------------------------------------------


def memory(centers_visible, centers_infrared, momentum, temperature, scale):
    return MatchedMemories(centers_visible, centers_infrared, momentum, temperature, scale)


def memory_rows(memory):
    return memory.visible.features, memory.infrared.features


def memory_losses(memory, x_visible, x_infrared, y_visible, y_infrared):
    return memory(x_visible, x_infrared, y_visible, y_infrared)


def step_loss(memory, q):
    names = ("features", "labels", "projections", "texts", "text_labels")
    by_modality = [{m: q[f"{name}_{m}"] for m in ("visible", "infrared")} for name in names]
    return sum(step_losses(memory, *by_modality).values())


def pseudo_labels(features, eps, min_samples, k1, k2):
    return cluster_modality(features, eps, min_samples, k1, k2)


# -- settings and draws -------------------------------------------------------------------------------------------


def settings(stage, epoch):
    config = PRESETS["sysu"]
    epochs = config.epochs_of(stage)
    now = config.at(epochs[epoch - 1])
    assert (now.stage, now.number) == (stage, epoch)
    own = dataclasses.asdict(config)
    return {
        **own,
        "epochs": len(epochs),
        "lr": now.learning_rate,
        "lr_bias": now.learning_rate * (1 if stage == 1 else config.bias_factor),
        "weight_decay": own["prompt_weight_decay" if stage == 1 else "weight_decay"],
        "exchange": now.mix_share,
        "evaluate": int(now.test),
        "momentum": config.cluster_momentum,
    }


def trained_parameters(stage):
    with torch.device("meta"):
        model = CCLNetModel(ClipConfig(), 2, 2)
    config = PRESETS["sysu"]
    optimizer = prompt_optimizer(model.language, config) if stage == 1 else contrast_optimizer(model.image, config)
    published = published_names(model)
    names = {id(p): published[k] for k, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def batches(labels_visible, labels_infrared, identities, instances, seed):
    steps = steps_of_epoch(labels_visible, labels_infrared, identities * instances)
    samplers = [
        ClusterBatches(labels, identities, instances, steps, 2 * seed + i)
        for i, labels in enumerate((labels_visible, labels_infrared))
    ]
    return [tuple(map(torch.tensor, pair)) for pair in zip(*samplers, strict=True)]


def training_view(image, modality, seed):
    torch.manual_seed(seed)
    height, width, _ = image.shape
    return TrainingView(modality, (height, width))(image.cpu().numpy())


def prompt_batches(visible, infrared, batch, seed):
    return make_prompt_batches(visible, infrared, batch, seed)
