"""What a phase of AML begins with: ImageNet's weights, or those of the phase before it (method page, section 6,
"Hand-over")."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sdcl.aml.method import METHOD, build
from sdcl.aml.network import Classifiers, Pair
from sdcl.aml.settings import Config, Phase
from sdcl.aml.weights import load_imagenet, load_published, published_stage
from sdcl.errors import UserError
from sdcl.frame.checkpoints import load_weights, own_checkpoint, pack, save_checkpoint
from sdcl.frame.run import Run
from sdcl.seeds import seed_everything
from sdcl.tensor_files import read_weights, tensors_in

__all__ = ["beginning", "build_pair", "enter", "make_classifiers", "save_phase"]



def beginning(config: Config, trial: int, folder: Path) -> tuple[Pair, list[Tensor]]:
    """The networks as the run's first phase finds them, on the CPU, and the classifiers' weights if it finds any.

    Both start from the same weights and share nothing: ImageNet's (or the same random ones), or a phase's file.

    Args:
        folder: the run's, where the file of the phase before is looked for without `config.start_from`.

    Raises:
        UserError: a file is missing, damaged, of another architecture, or of another phase than the one before.
    """
    pair, before = build_pair(config, trial), config.before(config.first_phase)
    if before is not None:
        return pair, _load_phase(pair, config, before, config.start_from or folder / f"{before}.pth")
    if config.model.pretrained is not None:
        for network in pair.networks:
            load_imagenet(network, config.model.pretrained)
    return pair, []


def build_pair(config: Config, trial: int) -> Pair:
    """Both networks with the same random backbone, and heads as they begin."""
    seed_everything(config.seed, trial, "weights")
    pair = Pair(build(config), build(config))
    pair.second.load_state_dict(pair.first.state_dict())
    pair.second.begin_head()
    return pair


def enter(phase: Phase, pair: Pair, config: Config, trial: int) -> None:
    """What changes between the phase before and this one.

    From stage 1 to stage 2 only the backbones carry over: neck and pooling exponent start afresh, since the published
    files name them otherwise (section 13.3), unless `config.carry_head`. Between other phases everything does.
    """
    before = config.before(phase)
    if before is None or config.at(before).stage == config.at(phase).stage:
        return
    seed_everything(config.seed, trial, phase, "head")
    for network in pair.networks:
        network.stage.fill_(2)
        if not config.carry_head:
            network.begin_head()


def make_classifiers(pair: Pair, classes: int, weights: list[Tensor], config: Config, trial: int) -> Classifiers:
    """Classifiers on the networks' device: with these weights, or as they begin where there are none.

    Raises UserError where the weights are of another number of classes.
    """
    seed_everything(config.seed, trial, "classifiers")
    classifiers = Classifiers(pair.first.dim, classes)
    for own, found in zip(classifiers.weights, weights, strict=False):
        if found.shape != own.shape:
            raise UserError(
                f"the weights to start from know {len(found)} classes of width {found.shape[-1]}, but the source has "
                f"{classes} pseudo-identities and the networks width {own.shape[1]}: begin with the source phase"
            )
        own.data.copy_(found)
    return classifiers.to(pair.first.pool.p.device)


def save_phase(run: Run, phase: Phase, epoch: int, pair: Pair, classifiers: list[Tensor]) -> None:
    """Writes `<phase>.pth`: both networks as the phase leaves them, for the next one, in this run or another."""
    whose = METHOD.name, run.trial, run.fingerprint
    checkpoint = pack(
        pair.first, run.config, method=whose[0], epoch=epoch, trial=whose[1], fingerprint=whose[2], metrics={}
    )
    further = {"second": pair.second.state_dict(), "phase": phase, "classifiers": classifiers}
    save_checkpoint(run.folder / f"{phase}.pth", {**checkpoint, **further})


def _load_phase(pair: Pair, config: Config, before: Phase, path: Path) -> list[Tensor]:
    """Both networks of a phase's file, this project's or the published program's; returns the classifiers' weights."""
    if not path.is_file():
        raise UserError(
            f"--phase {config.phase} starts from the weights of {before}, but there is no {path}: run that phase "
            "first, or name its file with --start-from"
        )
    checkpoint = own_checkpoint(path)
    if checkpoint is None:
        stage = published_stage(tensors_in(read_weights(path).get("model")))
        if stage is not None and stage != config.at(before).stage:
            raise UserError(f"{path} is of stage {stage}; --phase {config.phase} starts from the weights of {before}")
        return load_published(path, *pair.networks)
    if checkpoint["method"] != METHOD.name or checkpoint.get("phase") != before or "second" not in checkpoint:
        found = checkpoint.get("phase") or f"a checkpoint of {checkpoint['method']} of one network"
        raise UserError(f"--phase {config.phase} starts from {before}.pth of a run, but {path} is {found}")
    load_weights(pair.first, checkpoint, path)
    load_weights(pair.second, {"model": checkpoint["second"]}, path)
    return list(checkpoint["classifiers"])
